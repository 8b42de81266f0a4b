#!/bin/sh
# What `make run` does after building: a local cluster of one coordinator and four expert
# nodes with the model that ships with the project, and a first question.  That one is small, so
# each expert is held twice and any node may be killed; another model gets what memory it needs once.
#   tools/run.sh BIN_DIR [MODEL] [PORT]
# MODEL: a directory, or a preset of `polymath synth` (m3-tiny, ...), written to models/local/ once.
set -eu
bin=$1
model=${2:-models/demo}
port=${3:-8080}
copies=1
[ "$model" != models/demo ] || copies=2
case $model in
m[0-9]-*)
    if [ ! -e "$model" ]; then
        preset=$model
        model=models/local/$preset
        if [ ! -e "$model" ]; then
            # Only what is complete gets the name.
            mkdir -p models/local
            part=$(mktemp -d models/local/.part.XXXXXX)
            trap 'rm -rf "$part"' EXIT
            trap 'exit 130' INT TERM
            "$bin/polymath" synth --preset "$preset" --out "$part/model"
            mv -T "$part/model" "$model"
            rm -rf "$part"
            trap - EXIT INT TERM
        fi
    fi
    ;;
esac
exec "$bin/polymath" up --model "$model" --experts 4 --replicas $copies --port "$port" --ask Hello
