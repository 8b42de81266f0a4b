#!/bin/sh
# What `make run` does after building: a checkpoint if there is none, then a local cluster
# of one coordinator and four expert nodes, and a first question.
#   tools/run.sh BIN_DIR [MODEL_DIR] [PORT]
set -eu
bin=$1
model=${2:-models/local/m2-tiny}
port=${3:-8080}
if [ ! -f "$model/config.json" ]; then
    mkdir -p "$(dirname "$model")"
    "$bin/polymath" synth --preset m2-tiny --seed 1 --out "$model"
fi
exec "$bin/polymath" up --model "$model" --experts 4 --port "$port" --ask Hello
