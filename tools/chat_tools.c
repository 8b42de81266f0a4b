/* tools/chat_tools.c - a calculator and a clock for `polymath chat --tools`. */
#include "tools/chat_tools.h"

#include <ctype.h>
#include <dirent.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>
#include <unistd.h>

#include "base/err.h"
#include "base/mem.h"

#define MAX_DEPTH 64
#define ZONES "/usr/share/zoneinfo"

json_t *chat_tools_list(void)
{
    static const struct {
        const char *name, *description, *parameter;
    } tools[] = {{"calculator", "Calculate an arithmetic expression.", "expression"},
                 {"clock", "Tell the time in a city.", "city"}};
    json_t *list = json_array();
    for (size_t i = 0; i < sizeof(tools) / sizeof(tools[0]); i++)
        json_array_append_new(list, json_pack("{s:s, s:{s:s, s:s, s:{s:s, s:{s:{s:s}}, s:[s]}}}",
                                              "type", "function", "function", "name", tools[i].name,
                                              "description", tools[i].description, "parameters",
                                              "type", "object", "properties", tools[i].parameter,
                                              "type", "string", "required", tools[i].parameter));
    return list;
}

/* ---- The calculator: sum = product {+|- product}, product = factor {*|/ factor} ---- */

struct reader {
    const char *text, *at;
    int depth;
    bool is_wrong;
};

static double sum_of(struct reader *r);

static char next_of(struct reader *r)
{
    while (isspace((unsigned char)*r->at))
        r->at++;
    return *r->at;
}

static double factor_of(struct reader *r)
{
    double value = 0;
    char c = next_of(r);
    if (r->is_wrong || ++r->depth > MAX_DEPTH) {
        r->is_wrong = true;
    } else if (c == '-') {
        r->at++;
        value = -factor_of(r);
    } else if (c == '(') {
        r->at++;
        value = sum_of(r);
        r->is_wrong |= next_of(r) != ')';
        r->at += !r->is_wrong;
    } else if (isdigit((unsigned char)c) || c == '.') {
        char *end = NULL;
        value = strtod(r->at, &end);
        r->is_wrong = end == r->at;
        r->at = end;
    } else {
        r->is_wrong = true;
    }
    r->depth--;
    return value;
}

static double product_of(struct reader *r)
{
    double value = factor_of(r);
    for (char c; !r->is_wrong && ((c = next_of(r)) == '*' || c == '/');) {
        r->at++;
        double by = factor_of(r);
        value = c == '*' ? value * by : value / by;
    }
    return value;
}

static double sum_of(struct reader *r)
{
    double value = product_of(r);
    for (char c; !r->is_wrong && ((c = next_of(r)) == '+' || c == '-');) {
        r->at++;
        double by = product_of(r);
        value = c == '+' ? value + by : value - by;
    }
    return value;
}

int chat_tools_calculate(const char *expression, double *value, struct err *e)
{
    struct reader r = {.text = expression, .at = expression};
    *value = sum_of(&r);
    if (r.is_wrong || next_of(&r) != 0)
        return err_set(e, E_INVALID, "expression: character %td is not arithmetic",
                       r.at - r.text + 1);
    if (!isfinite(*value))
        return err_set(e, E_INVALID, "expression: the result is not a number");
    return 0;
}

static char *calculator(const char *expression)
{
    struct err e = {0};
    double value = 0;
    if (chat_tools_calculate(expression, &value, &e) < 0)
        return mem_format("error: %s", e.text);
    return mem_format("%.15g", value);
}

/* ---- The clock ---- */

/* "Europe/Oslo" for "Oslo", from the system's time zones; false: there is none of that name. */
static bool find_zone(const char *city, char *zone, size_t size)
{
    static const char *const parts[] = {"Africa",    "America", "Asia",   "Atlantic",
                                        "Australia", "Europe",  "Indian", "Pacific"};
    char name[64];
    size_t n = strlen(city);
    if (n == 0 || n >= sizeof(name))
        return false;
    for (size_t i = 0; i <= n; i++)
        name[i] = city[i] == ' ' ? '_' : city[i];
    for (size_t i = 0; i < sizeof(parts) / sizeof(parts[0]); i++) {
        char path[128];
        snprintf(path, sizeof(path), ZONES "/%s", parts[i]);
        DIR *folder = opendir(path);
        bool found = false;
        for (const struct dirent *d; folder && !found && (d = readdir(folder));) {
            /* The name is taken from the folder, so that nothing but a zone can be opened. */
            found = d->d_type != DT_DIR && strcasecmp(d->d_name, name) == 0;
            if (found)
                snprintf(zone, size, "%s/%.64s", parts[i], d->d_name);
        }
        if (folder)
            closedir(folder);
        if (found)
            return true;
    }
    return false;
}

static char *clock_of(const char *city, int64_t utc_s)
{
    char zone[128];
    if (!find_zone(city, zone, sizeof(zone)))
        return mem_format("error: no time zone is known for this city");
    struct tm there;
    time_t now = (time_t)utc_s;
    /* Left as it is: nothing else in this program shows a local time. */
    setenv("TZ", zone, 1);
    tzset();
    localtime_r(&now, &there);
    return mem_format("%02d:%02d", there.tm_hour, there.tm_min);
}

char *chat_tools_run(const char *name, const char *arguments, int64_t utc_s)
{
    json_t *given = json_loads(arguments, 0, NULL);
    bool is_clock = strcmp(name, "clock") == 0;
    const char *wanted = is_clock ? "city" : "expression";
    const char *value = json_string_value(json_object_get(given, wanted));
    char *answer;
    if (!is_clock && strcmp(name, "calculator") != 0)
        answer = mem_format("error: there is no such tool");
    else if (!value)
        answer = mem_format("error: argument '%s' is missing or no string", wanted);
    else
        answer = is_clock ? clock_of(value, utc_s) : calculator(value);
    json_decref(given);
    return answer;
}
