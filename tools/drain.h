/* tools/drain.h - `polymath drain`. */
#pragma once

/* argv[0] is the verb.  Exit code: 0, 1 (failed), 2 (misused). */
int drain_main(int argc, char **argv);
