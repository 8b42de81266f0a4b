/* tools/status.h - `polymath status`. */
#pragma once

/* argv[0] is the verb.  Exit code: 0, 1 (failed), 2 (misused). */
int status_main(int argc, char **argv);
