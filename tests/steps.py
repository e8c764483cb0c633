"""The numbered steps of the schema, as `retold migrate` tells them."""

STEPS = ["0001_tables", "0002_parked", "0003_projections", "0004_generations", "0005_claims"]


def told(word: str) -> str:
    return "".join(f"{word} {step}\n" for step in STEPS)
