#!/bin/bash
# run.sh BIN_DIR [NAME-PART]... - the official clients and the oracles against a local cluster of the demo model.
#
# Packages are those of package-lock.json; they are fetched once, nothing else needs a network.
set -u
cd "$(dirname "$0")/../.." || exit 2
bin=$PWD/${1:-build/release/bin}
shift
if ! cmp -s tests/clients/package-lock.json tests/clients/node_modules/.installed-lock; then
    echo 'fetching the clients (npm ci)'
    (cd tests/clients && npm ci --silent --ignore-scripts --no-audit --no-fund) || exit 1
    cp tests/clients/package-lock.json tests/clients/node_modules/.installed-lock
fi
exec node tests/clients/main.mjs "$bin" models/demo "$@"
