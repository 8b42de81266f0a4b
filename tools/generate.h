/* tools/generate.h - `polymath generate`: continues a prompt in this process, without a
 * network.  What a cluster answers is compared with this. */
#pragma once

int generate_main(int argc, char **argv);
