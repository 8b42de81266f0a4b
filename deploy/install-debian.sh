#!/bin/sh
# Installs what building, running and testing Polymath needs on Debian 12, and nothing
# that is there already.  `make deps` calls it; so do `make run` and `.ci/run`.
#
#   deploy/install-debian.sh           libraries and tools to build, run and test
#   deploy/install-debian.sh --clients for `make test-clients`: chromium; node and npm, if there is no npm
#   deploy/install-debian.sh --check   print what is missing; exit 1 if anything is
set -eu

build='gcc make pkg-config git libc6-dev
    libzmq3-dev libprotobuf-c-dev protobuf-c-compiler protobuf-compiler libprotobuf-dev
    libconfig-dev libopenblas-dev libmicrohttpd-dev libjansson-dev libxxhash-dev
    libutf8proc-dev libcurl4-openssl-dev libedit-dev libsodium-dev
    zlib1g-dev'
test='libpcre2-dev clang libclang-rt-14-dev clang-format valgrind curl procps qemu-user
    etcd-server'

clients=''
if [ "${1:-}" = --clients ]; then
    clients='chromium fonts-dejavu-core'
    command -v npm >/dev/null || clients="$clients nodejs npm"
fi

missing=''
for package in $build $test $clients; do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' ||
        missing="$missing $package"
done
[ -n "$missing" ] || exit 0
if [ "${1:-}" = --check ]; then
    echo "missing packages:$missing"
    exit 1
fi

sudo=''
if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || {
        echo "install-debian.sh: not root and no sudo; as root run: apt-get install$missing" >&2
        exit 1
    }
    sudo=sudo
fi
echo "installing:$missing"
export DEBIAN_FRONTEND=noninteractive
# A lock wait, because unattended upgrades hold the lock on a machine that has just booted.
$sudo apt-get -o DPkg::Lock::Timeout=300 -qq update
# shellcheck disable=SC2086
$sudo apt-get -o DPkg::Lock::Timeout=300 -qq install -y --no-install-recommends $missing >/dev/null
# The tests start etcds of their own; nobody asked for the package's service.
case $missing in
*etcd-server*) [ ! -d /run/systemd/system ] || $sudo systemctl -q disable --now etcd || true ;;
esac
