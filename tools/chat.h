/* tools/chat.h - `polymath chat`. */
#pragma once

/* argv[0] is the verb.  Exit code: 0, 1 (failed), 2 (misused). */
int chat_main(int argc, char **argv);
