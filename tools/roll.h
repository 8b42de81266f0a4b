/* tools/roll.h - `polymath roll`. */
#pragma once

/* argv[0] is the verb.  Exit code: 0, 1 (failed), 2 (misused). */
int roll_main(int argc, char **argv);
