/* tools/logits.h - `polymath logits`: the logits of a list of token ids, to compare engines. */
#pragma once

int logits_main(int argc, char **argv);
