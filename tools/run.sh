#!/bin/sh
# What `make run` does after building: a local cluster of one coordinator and four expert
# nodes with the model that ships with the project, and a first question.  That one is small, so
# each expert is held twice and any node may be killed; another model gets what memory it needs once.
#   tools/run.sh BIN_DIR [MODEL_DIR] [PORT]
set -eu
bin=$1
model=${2:-models/demo}
port=${3:-8080}
copies=1
[ "$model" != models/demo ] || copies=2
exec "$bin/polymath" up --model "$model" --experts 4 --replicas $copies --port "$port" --ask Hello
