#!/bin/sh
# What `make run` does after building: a local cluster of one coordinator and four expert
# nodes with the model that ships with the project, and a first question.
#   tools/run.sh BIN_DIR [MODEL_DIR] [PORT]
set -eu
bin=$1
model=${2:-models/demo}
port=${3:-8080}
exec "$bin/polymath" up --model "$model" --experts 4 --port "$port" --ask Hello
