/* base/file_limit.h - how many files and sockets this process may have open. */
#pragma once

/* Raises the limit as far as the system lets it; how many there may be now. */
long file_limit_raise(void);
