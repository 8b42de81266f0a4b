/* tools/pack.h - `polymath pack`: a checkpoint as a packed directory (engine/pack.h). */
#pragma once

int pack_main(int argc, char **argv);
