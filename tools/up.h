/* tools/up.h - `polymath up`. */
#pragma once

/* argv[0] is the verb.  Exit code: 0, 1 (failed), 2 (misused). */
int up_main(int argc, char **argv);
