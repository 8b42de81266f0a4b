/* base/version.h - what this binary is. */
#pragma once

#define POLYMATH_VERSION "0.1.0"
enum { POLYMATH_PROTOCOL_VERSION = 2 };

/* "0.1.0 (commit 1a2b3c4, release)": commit and variant come from the build. */
const char *version_string(void);
