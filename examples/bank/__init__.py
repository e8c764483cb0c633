"""A small bank: accounts, and transfers of money between them. `make demo` runs it."""
