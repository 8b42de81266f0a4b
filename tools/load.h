/* tools/load.h - `polymath load`: how fast a model's experts are ready, beside reading its
 * files. */
#pragma once

int load_main(int argc, char **argv);
