/* tools/bench_rpc.h - `polymath bench rpc`: the round trip of a Forward without the experts. */
#pragma once

int bench_rpc_main(int argc, char **argv);
