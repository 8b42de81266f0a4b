/* tools/keys.h - `polymath keys`: key pairs of programs, allow-lists, API keys of clients. */
#pragma once

int keys_main(int argc, char **argv);
