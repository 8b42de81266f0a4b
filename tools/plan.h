/* tools/plan.h - `polymath plan`: what some machines would do with a model. */
#pragma once

int plan_main(int argc, char **argv);
