/* tools/loadtest.h - `polymath loadtest`: many clients at once against a running cluster. */
#pragma once

int loadtest_main(int argc, char **argv);
