/* tests/unit/test_grammar_keywords.c - every keyword of JSON Schema that grammars know: what they take, and that
 * whatever a walk along their masks says is valid to a validator of its own. */
#define PCRE2_CODE_UNIT_WIDTH 8
#include <jansson.h>
#include <math.h>
#include <pcre2.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/mem.h"
#include "model/grammar_tokens.h"
#include "model/tokenizer_write.h"
#include "model/utf8.h"
#include "tests/lib/test.h"

/* ---- a validator ---------------------------------------------------------------------------- */

static bool is_valid(const json_t *root, const json_t *schema, const json_t *v);

static bool matches(const char *pattern, const char *text, size_t len)
{
    int code;
    PCRE2_SIZE at;
    pcre2_code *re =
        pcre2_compile((PCRE2_SPTR)pattern, PCRE2_ZERO_TERMINATED,
                      PCRE2_UTF | PCRE2_DOLLAR_ENDONLY | PCRE2_ALT_BSUX, &code, &at, NULL);
    CHECK(re != NULL);
    pcre2_match_data *m = pcre2_match_data_create_from_pattern(re, NULL);
    int rc = pcre2_match(re, (PCRE2_SPTR)text, len, 0, 0, m, NULL);
    pcre2_match_data_free(m);
    pcre2_code_free(re);
    return rc >= 0;
}

static bool has_type(const char *type, const json_t *v)
{
    double x = json_number_value(v);
    return (!strcmp(type, "string") && json_is_string(v)) ||
           (!strcmp(type, "number") && json_is_number(v)) ||
           (!strcmp(type, "integer") && json_is_number(v) && floor(x) == x) ||
           (!strcmp(type, "boolean") && json_is_boolean(v)) ||
           (!strcmp(type, "null") && json_is_null(v)) ||
           (!strcmp(type, "object") && json_is_object(v)) ||
           (!strcmp(type, "array") && json_is_array(v));
}

static bool within(const json_t *s, const char *least, const char *most, double x)
{
    const json_t *a = json_object_get(s, least), *b = json_object_get(s, most);
    if (!strcmp(least, "minimum") &&
        ((json_is_true(json_object_get(s, "exclusiveMinimum")) && x <= json_number_value(a)) ||
         (json_is_true(json_object_get(s, "exclusiveMaximum")) && x >= json_number_value(b))))
        return false;
    return (!a || x >= json_number_value(a)) && (!b || x <= json_number_value(b));
}

static bool is_number_valid(const json_t *s, const json_t *v)
{
    double x = json_number_value(v);
    const json_t *a = json_object_get(s, "exclusiveMinimum"),
                 *b = json_object_get(s, "exclusiveMaximum");
    const json_t *m = json_object_get(s, "multipleOf");
    double times = m ? x / json_number_value(m) : 0;
    if (json_is_integer(v) && json_is_integer(m)) /* a double does not tell large ones apart */
        times = json_integer_value(v) % json_integer_value(m) == 0 ? 0 : 0.5;
    a = json_is_number(a) ? a : NULL;
    b = json_is_number(b) ? b : NULL;
    return within(s, "minimum", "maximum", x) && (!a || x > json_number_value(a)) &&
           (!b || x < json_number_value(b)) && fabs(times - round(times)) < 1e-6;
}

static bool is_string_valid(const json_t *s, const json_t *v)
{
    const char *text = json_string_value(v),
               *pattern = json_string_value(json_object_get(s, "pattern"));
    const char *format = json_string_value(json_object_get(s, "format"));
    size_t n = 0, len = json_string_length(v);
    for (size_t i = 0; i < len; i++)
        n += ((unsigned char)text[i] & 0xc0) != 0x80;
    if (format && !strcmp(format, "date")) {
        int y, m, d, end = 0;
        static const int days[] = {31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
        if (sscanf(text, "%4d-%2d-%2d%n", &y, &m, &d, &end) != 3 || end != 10 || len != 10 ||
            m < 1 || m > 12 || d < 1 || d > days[m - 1])
            return false;
    }
    if (format && !strcmp(format, "ipv4")) {
        unsigned a, b, c, d;
        int end = 0;
        if (sscanf(text, "%3u.%3u.%3u.%3u%n", &a, &b, &c, &d, &end) != 4 || end != (int)len ||
            a > 255 || b > 255 || c > 255 || d > 255)
            return false;
    }
    return within(s, "minLength", "maxLength", (double)n) &&
           (!pattern || matches(pattern, text, len));
}

static bool is_array_valid(const json_t *root, const json_t *s, const json_t *v)
{
    const json_t *prefix = json_object_get(s, "prefixItems"), *items = json_object_get(s, "items");
    const json_t *what = json_object_get(s, "contains"), *least = json_object_get(s, "minContains");
    if (json_is_array(items)) {
        prefix = items;
        items = json_object_get(s, "additionalItems");
    }
    double hits = 0;
    for (size_t i = 0; what && i < json_array_size(v); i++)
        hits += is_valid(root, what, json_array_get(v, i));
    if (!within(s, "minItems", "maxItems", (double)json_array_size(v)) ||
        (what && (hits < (least ? json_number_value(least) : 1) ||
                  !within(s, "minContains", "maxContains", hits))))
        return false;
    for (size_t i = 0; i < json_array_size(v); i++) {
        for (size_t k = 0; k < i && json_is_true(json_object_get(s, "uniqueItems")); k++)
            if (json_equal(json_array_get(v, i), json_array_get(v, k)))
                return false;
        const json_t *one = i < json_array_size(prefix) ? json_array_get(prefix, i) : items;
        if (one && !is_valid(root, one, json_array_get(v, i)))
            return false;
    }
    return true;
}

static bool is_object_valid(const json_t *root, const json_t *s, json_t *v)
{
    const char *key, *pattern;
    json_t *one, *of;
    if (!within(s, "minProperties", "maxProperties", (double)json_object_size(v)))
        return false;
    for (size_t i = 0; i < json_array_size(json_object_get(s, "required")); i++)
        if (!json_object_get(v,
                             json_string_value(json_array_get(json_object_get(s, "required"), i))))
            return false;
    json_object_foreach(v, key, one)
    {
        json_t *declared = json_object_get(json_object_get(s, "properties"), key);
        json_t *names = json_object_get(s, "propertyNames"), *name = json_string(key);
        bool is_known = declared != NULL, is_good = !names || is_valid(root, names, name);
        json_decref(name);
        if (!is_good || (declared && !is_valid(root, declared, one)))
            return false;
        json_object_foreach(json_object_get(s, "patternProperties"), pattern, of)
        {
            if (matches(pattern, key, strlen(key))) {
                is_known = true;
                if (!is_valid(root, of, one))
                    return false;
            }
        }
        json_t *more = json_object_get(s, "additionalProperties");
        if (!is_known && more && !is_valid(root, more, one))
            return false;
    }
    return true;
}

static bool is_dependent_valid(const json_t *root, const json_t *s, const json_t *v)
{
    const char *key;
    json_t *then, *name;
    size_t i;
    for (int k = 0; k < 3; k++) {
        static const char *const keys[] = {"dependentRequired", "dependentSchemas", "dependencies"};
        json_object_foreach(json_object_get(s, keys[k]), key, then)
        {
            if (!json_object_get(v, key))
                continue;
            if (json_is_object(then) && !is_valid(root, then, v))
                return false;
            json_array_foreach(then, i, name)
            {
                if (!json_object_get(v, json_string_value(name)))
                    return false;
            }
        }
    }
    return true;
}

static int count_valid(const json_t *root, const json_t *list, const json_t *v)
{
    int n = 0;
    for (size_t i = 0; i < json_array_size(list); i++)
        n += is_valid(root, json_array_get(list, i), v);
    return n;
}

static bool is_typed(const json_t *s, const json_t *v)
{
    const json_t *type = json_object_get(s, "type");
    if (json_is_null(v) && json_is_true(json_object_get(s, "nullable")))
        return true;
    if (json_is_string(type))
        return has_type(json_string_value(type), v);
    for (size_t i = 0; i < json_array_size(type); i++)
        if (has_type(json_string_value(json_array_get(type, i)), v))
            return true;
    return !type;
}

static bool is_valid(const json_t *root, const json_t *s, const json_t *v)
{
    if (json_is_boolean(s))
        return json_is_true(s);
    const json_t *any = json_object_get(s, "anyOf"), *one = json_object_get(s, "oneOf");
    const json_t *all = json_object_get(s, "allOf"), *list = json_object_get(s, "enum");
    const json_t *only = json_object_get(s, "const");
    const char *ref = json_string_value(json_object_get(s, "$ref"));
    if (ref) {
        const json_t *to = ref[1] ? json_object_get(json_object_get(root, "$defs"), ref + 8) : root;
        if (!is_valid(root, to, v))
            return false;
    }
    const json_t *not = json_object_get(s, "not"), *when = json_object_get(s, "if");
    if (not &&is_valid(root, not, v))
        return false;
    if (when)
        when = json_object_get(s, is_valid(root, when, v) ? "then" : "else");
    if ((when && !is_valid(root, when, v)) ||
        (json_is_object(v) && !is_dependent_valid(root, s, v)))
        return false;
    bool is_listed = !list;
    for (size_t i = 0; i < json_array_size(list); i++)
        is_listed = is_listed || json_equal(json_array_get(list, i), v);
    return is_listed && is_typed(s, v) && (!only || json_equal(only, v)) &&
           (!any || count_valid(root, any, v) > 0) && (!one || count_valid(root, one, v) == 1) &&
           (!all || count_valid(root, all, v) == (int)json_array_size(all)) &&
           (!json_is_number(v) || is_number_valid(s, v)) &&
           (!json_is_string(v) || is_string_valid(s, v)) &&
           (!json_is_array(v) || is_array_valid(root, s, v)) &&
           (!json_is_object(v) || is_object_valid(root, s, (json_t *)(uintptr_t)v));
}

/* ---- keywords ------------------------------------------------------------------------------------ */

static const struct {
    const char *schema, *good[8], *bad[8];
} cases[] = {
    {"{'pattern': '^[a-c]{2,3}$'}", {"'ab'", "'ccc'"}, {"'a'", "'abca'", "'abd'", "''"}},
    {"{'type': 'string', 'pattern': 'b+'}",
     {"'b'", "'xbby'",
      "'\xc3\xa9"
      "b'"},
     {"''", "'a'"}},
    {"{'type': 'string', 'pattern': '^(?:foo|ba[rz])-[0-9]+$'}",
     {"'foo-1'", "'baz-42'"},
     {"'foo-'", "'bax-1'", "'foo-1 '"}},
    {"{'type': 'string', 'pattern': '^a|z$'}", {"'abc'", "'xyz'", "'a'"}, {"'ba'", "'zb'"}},
    {"{'type': 'string', 'pattern': '^[^a-z\\\\s]\\\\w*\\\\.$'}",
     {"'Q.'", "'\xc3\xa9x_9.'", "'\xf0\x9f\x9a\x80.'"},
     {"'q.'", "' x.'", "'Qx'", "'Q-.'"}},
    {"{'type': 'string', 'pattern': '^[\\\\u00e0-\\\\u00ff\\\\x41]+$'}",
     {"'\xc3\xa9'", "'A\xc3\xbf'"},
     {"'e'", "'\xc3\x9f'", "''"}},
    {"{'type': 'string', 'pattern': '^\\\"\\\\\\\\\\\\n.$'}",
     {"'\\\"\\\\\\nx'"},
     {"'\\\"'", "'\\\"\\\\\\n\\n'"}},
    {"{'type': 'string', 'pattern': '^a*$', 'minLength': 2, 'maxLength': 3}",
     {"'aa'", "'aaa'"},
     {"'a'", "'aaaa'", "'ab'"}},
    {"{'type': 'string', 'pattern': '^(ab?){3}$', 'maxLength': 4}",
     {"'aaa'", "'aaba'"},
     {"'ababab'", "'aa'"}},
    {"{'type': 'string', 'minLength': 2, 'maxLength': 40}",
     {"'ab'", "'\xe4\xb8\xad\xe6\x96\x87'"},
     {"'a'"}},
    {"{'type': 'string', 'format': 'date'}",
     {"'2024-02-28'"},
     {"'2024-02-30'", "'2024-13-01'", "'24-01-01'"}},
    {"{'type': 'string', 'format': 'date-time'}", {"'2024-02-28T12:00:00Z'"}, {"'2024-02-28'"}},
    {"{'type': 'string', 'format': 'uuid'}",
     {"'01234567-89ab-cdef-0123-456789abcdef'"},
     {"'0123'"}},
    {"{'type': 'string', 'format': 'ipv4'}", {"'10.0.0.255'"}, {"'10.0.0.256'", "'1.2.3'"}},
    {"{'type': 'string', 'format': 'email'}", {"'a.b@c-d.org'"}, {"'a@'", "'ab.org'"}},
    {"{'type': 'string', 'format': 'color'}", {"'anything'"}, {"1"}},
    {"{'type': 'number', 'minimum': 0.25, 'maximum': 12.5}",
     {"0.25", "12.5", "1", "9.999", "12.499"},
     {"0.2499", "12.51", "13", "0", "-1", "0."}},
    {"{'type': 'number', 'exclusiveMinimum': 0, 'exclusiveMaximum': 1}",
     {"0.5", "0.001"},
     {"0", "1", "1.0", "0.0"}},
    {"{'type': 'number', 'minimum': -3.5, 'maximum': -1}",
     {"-3.5", "-1", "-2.75", "-1.0"},
     {"-3.51", "-0.9", "0"}},
    {"{'type': 'number', 'minimum': -1.5}", {"-1.5", "0", "3.25", "-0.5"}, {"-1.6", "-2"}},
    {"{'type': 'number', 'multipleOf': 0.01, 'minimum': 0}", {"1.25", "3", "0.1"}, {"1.255", "-1"}},
    {"{'type': 'integer', 'multipleOf': 7}", {"0", "7", "-14", "49"}, {"1", "8", "-13"}},
    {"{'type': 'integer', 'multipleOf': 25, 'minimum': 30, 'maximum': 1010}",
     {"50", "1000"},
     {"25", "60", "1025"}},
    {"{'type': 'integer', 'multipleOf': 1000, 'minimum': -1500, 'maximum': 2500}",
     {"-1000", "0", "2000"},
     {"-2000", "500", "3000"}},
    {"{'minimum': 3, 'maximum': 4}", {"3", "3.5", "4"}, {"2", "5"}},
    {"{'type': 'array', 'prefixItems': [{'type': 'string'}, {'type': 'integer'}], 'items': false}",
     {"[]", "['a']", "['a', 1]"},
     {"[1]", "['a', 1, 2]"}},
    {"{'prefixItems': [{'const': 1}], 'items': {'type': 'boolean'}, 'minItems': 1, 'maxItems': 3}",
     {"[1]", "[1, true, false]"},
     {"[]", "[true]", "[1, true, true, true]"}},
    {"{'type': 'array', 'items': {'type': 'null'}, 'maxItems': 1, 'uniqueItems': true}",
     {"[]", "[null]"},
     {"[null,null]"}},
    {"{'type': 'object', 'properties': {'a': {'type': 'null'}, 'b': {'type': 'null'}, 'c': "
     "{'type': 'null'}}, "
     "'minProperties': 2}",
     {"{'a':null,'b':null}", "{'b':null,'c':null}", "{'a':null,'b':null,'c':null}"},
     {"{}", "{'c':null}"}},
    {"{'type': 'object', 'properties': {'a': {'type': 'null'}, 'b': {'type': 'null'}, 'c': "
     "{'type': 'null'}}, "
     "'maxProperties': 1, 'minProperties': 1}",
     {"{'a':null}", "{'c':null}"},
     {"{}", "{'a':null,'b':null}"}},
    {"{'type': 'object', 'additionalProperties': {'type': 'integer'}, 'maxProperties': 2, "
     "'minProperties': 1}",
     {"{'x':1}", "{'x':1,'y':2}"},
     {"{}", "{'x':1,'y':2,'z':3}"}},
    {"{'type': 'object', 'patternProperties': {'^x_[a-z]+$': {'type': 'integer'}}, "
     "'additionalProperties': false}",
     {"{}", "{'x_a':1}", "{'x_a':1,'x_bc':2}"},
     {"{'y':1}", "{'x_a':'s'}", "{'x_':1}"}},
    {"{'properties': {'n_a': {'minimum': 3}, 'b': {}}, 'patternProperties': {'^n_': {'type': "
     "'integer', 'maximum': "
     "5}}, 'required': ['n_a', 'n_q']}",
     {"{'n_a':3,'n_q':-1}", "{'n_a':5,'b':'x','n_q':1}"},
     {"{'n_a':6,'n_q':1}", "{'n_a':3}", "{'n_a':3,'n_q':'s'}"}},
    {"{'type': 'object', 'propertyNames': {'pattern': '^[a-z]+$', 'maxLength': 3}, "
     "'additionalProperties': "
     "{'type': 'boolean'}}",
     {"{'abc':true}", "{}"},
     {"{'abcd':true}", "{'A':true}"}},
    {"{'type': 'object', 'propertyNames': {'enum': ['p', 'q']}}", {"{'p':1,'q':[]}"}, {"{'r':1}"}},
    {"{'enum': ['ab', 'abc', 7, 3, null], 'minLength': 3, 'maximum': 5}",
     {"'abc'", "3", "null"},
     {"'ab'", "7"}},
    {"{'type': 'string', 'const': 'x', 'maxLength': 1}", {"'x'"}, {"'y'"}},
    {"{'const': {'a': [1, 2.5, null]}}", {"{'a': [1, 2.5, null]}"}, {"{'a': []}"}},
    {"{'type': ['integer', 'null', 'string'], 'minimum': 2, 'maxLength': 1}",
     {"2", "null", "'a'"},
     {"1", "'ab'", "true"}},
    {"{'type': 'integer', 'nullable': true}", {"4", "null"}, {"'x'"}},
    {"{'type': 'string', 'anyOf': [{'minLength': 3}, {'pattern': '^q'}, {'type': 'integer'}]}",
     {"'abc'", "'q'"},
     {"'ab'", "3"}},
    {"{'allOf': [{'type': ['integer', 'string']}, {'minimum': 3}, {'type': 'number', 'maximum': "
     "9}]}",
     {"3", "9"},
     {"2", "10", "'x'", "3.5"}},
    {"{'allOf': [{'properties': {'a': {'type': 'integer'}}, 'required': ['a']}, {'properties': "
     "{'a': {'minimum': 5}, "
     "'b': {'type': 'null'}}, 'required': ['b']}]}",
     {"{'a':5,'b':null}"},
     {"{'a':4,'b':null}", "{'a':5}"}},
    {"{'allOf': [{'properties': {'a': {}}, 'additionalProperties': false}, {'properties': {'b': "
     "{}}}]}",
     {"{'a':1}", "{}"},
     {"{'b':1}", "{'a':1,'b':1}"}},
    {"{'oneOf': [{'type': 'integer'}, {'type': 'string'}]}", {"1", "'x'"}, {"null"}},
    {"{'oneOf': [{'type': 'integer', 'maximum': 3}, {'type': 'integer', 'minimum': 4}]}",
     {"1", "4"},
     {"'x'"}},
    {"{'oneOf': [{'type': 'object', 'properties': {'k': {'const': 'a'}, 'n': {'type': 'integer'}}, "
     "'required': "
     "['k', 'n']}, {'type': 'object', 'properties': {'k': {'enum': ['b', 'c']}}, 'required': "
     "['k']}]}",
     {"{'k':'a','n':1}", "{'k':'c'}"},
     {"{'k':'a'}", "{'k':'b','n':1}"}},
    {"{'$defs': {'pos': {'type': 'integer', 'minimum': 1}}, '$ref': '#/$defs/pos', 'maximum': 12}",
     {"1", "12"},
     {"0", "13"}},
    {"{'$defs': {'n': {'type': 'object', 'properties': {'l': {'type': ['string', 'null'], "
     "'pattern': '^[xy]*$'}, "
     "'r': {'anyOf': [{'type': 'null'}, {'$ref': '#/$defs/n'}]}}, 'required': ['l', 'r'], "
     "'additionalProperties': "
     "false}}, '$ref': '#/$defs/n'}",
     {"{'l':'xy','r':null}", "{'l':null,'r':{'l':'','r':null}}"},
     {"{'l':'z','r':null}", "{'l':'x'}"}},
    {"{'type': 'object', 'properties': {'kids': {'type': 'array', 'items': {'$ref': '#'}, "
     "'maxItems': 2}}, "
     "'additionalProperties': false}",
     {"{}", "{'kids':[{},{'kids':[]}]}"},
     {"{'kids':[{},{},{}]}", "{'x':1}"}},
    /* Tuples as zod and draft 7 write them, bounds as OpenAPI 3.0 does. */
    {"{'type': 'array', 'items': [{'type': 'string'}, {'type': 'integer'}], 'minItems': 2, "
     "'maxItems': 2, 'additionalItems': false}",
     {"['a',1]"},
     {"['a']", "[1,'a']", "['a',1,2]"}},
    {"{'type': 'array', 'items': [{'const': 1}], 'additionalItems': {'type': 'null'}}",
     {"[]", "[1,null,null]"},
     {"[null]", "[1,1]"}},
    {"{'type': 'integer', 'minimum': 0, 'exclusiveMinimum': true, 'maximum': 9, "
     "'exclusiveMaximum': true}",
     {"1", "8"},
     {"0", "9"}},
    /* uniqueItems */
    {"{'type': 'array', 'items': {'enum': ['a', 'b', 'c', 'a']}, 'uniqueItems': true}",
     {"[]", "['b']", "['c','a','b']"},
     {"['a','a']", "['a','b','c','b']", "['d']"}},
    {"{'type': 'array', 'items': {'anyOf': [{'type': 'boolean'}, {'type': 'integer', 'minimum': 1, "
     "'maximum': 3}]}, 'uniqueItems': true, 'minItems': 2, 'maxItems': 3}",
     {"[true,1]", "[3,2,false]"},
     {"[1]", "[1,1]", "[true,false,1,2]"}},
    {"{'type': 'array', 'items': {'type': 'integer', 'minimum': 1, 'maximum': 40}, 'uniqueItems': "
     "true, 'minItems': 1, 'maxItems': 3}",
     {"[1,2,40]", "[7]"},
     {"[]", "[2,2]", "[1,2,3,4]"}},
    /* contains */
    {"{'type': 'array', 'items': {'type': ['integer', 'string']}, 'contains': {'type': 'string'}}",
     {"['a']", "[1,'a',2]", "['a','b']"},
     {"[]", "[1]", "[1,2,3]"}},
    {"{'type': 'array', 'items': {'type': ['integer', 'null']}, 'contains': {'const': null}, "
     "'minContains': 1, 'maxContains': 2, 'maxItems': 4}",
     {"[null]", "[1,null,2,null]"},
     {"[]", "[1]", "[null,null,null]", "[null,1,2,3,4]"}},
    {"{'type': 'array', 'prefixItems': [{'type': 'integer'}], 'items': {'type': 'boolean'}, "
     "'contains': {'enum': [true, 7]}, 'minItems': 2}",
     {"[7,false]", "[1,false,true]"},
     {"[7]", "[1,false]", "[true,true]"}},
    {"{'type': 'array', 'items': {'type': 'null'}, 'contains': {'type': 'string'}, 'minContains': "
     "0}",
     {"[]", "[null]"},
     {"['a']"}},
    /* not */
    {"{'type': 'string', 'not': {'enum': ['a', 'abc', '<x>']}}",
     {"''", "'ab'", "'abcd'", "'b'"},
     {"'a'", "'abc'", "3"}},
    {"{'type': 'string', 'pattern': '^[a-z]+$', 'not': {'pattern': '^x|y$'}, 'minLength': 2}",
     {"'ax'", "'ayb'"},
     {"'xa'", "'ay'", "'A'", "'a'"}},
    {"{'type': 'integer', 'not': {'const': 5}, 'minimum': 3, 'maximum': 7}",
     {"3", "4", "6", "7"},
     {"5", "2", "8"}},
    {"{'type': 'number', 'not': {'enum': [0, 2.5]}}",
     {"0.1", "-3", "2.4", "2.51"},
     {"0", "2.5", "0.0"}},
    {"{'type': ['boolean', 'null', 'string'], 'not': {'enum': [true, 'q']}}",
     {"false", "null", "'x'"},
     {"true", "'q'"}},
    {"{'not': {'type': ['object', 'array', 'string']}}",
     {"1", "null", "true"},
     {"{}", "[]", "'a'"}},
    {"{'not': {'enum': [{}, [], null, '']}}",
     {"{'a':1}", "[1]", "'a'", "0", "false"},
     {"{}", "[]", "null", "''"}},
    {"{'type': 'object', 'properties': {'a': {'type': 'integer'}, 'b': {'type': 'integer'}}, "
     "'not': "
     "{'required': ['a', 'b']}}",
     {"{}", "{'a':1}", "{'b':1}"},
     {"{'a':1,'b':2}"}},
    {"{'type': 'object', 'properties': {'k': {'type': 'string'}, 'n': {'type': 'integer'}}, "
     "'required': ['k'], 'not': {'properties': {'k': {'const': 'x'}, 'n': {'minimum': 3}}, "
     "'required': ['n']}}",
     {"{'k':'x'}", "{'k':'x','n':2}", "{'k':'y','n':3}"},
     {"{'k':'x','n':3}", "{'n':1}"}},
    {"{'type': 'integer', 'not': {'anyOf': [{'minimum': 10}, {'maximum': 5}]}}",
     {"6", "9"},
     {"5", "10"}},
    {"{'type': 'string', 'not': {'not': {'maxLength': 2}}}", {"'ab'"}, {"'abc'"}},
    {"{'type': 'array', 'items': {'type': 'integer'}, 'not': {'contains': {'maximum': 0}}}",
     {"[]", "[1,2]"},
     {"[0]", "[1,-1]"}},
    /* if */
    {"{'type': 'object', 'properties': {'kind': {'enum': ['a', 'b']}, 'x': {'type': 'integer'}}, "
     "'required': ['kind'], 'if': {'properties': {'kind': {'const': 'a'}}}, 'then': {'required': "
     "['x']}, 'else': {'properties': {'x': {'maximum': 3}}}}",
     {"{'kind':'a','x':9}", "{'kind':'b'}", "{'kind':'b','x':3}"},
     {"{'kind':'a'}", "{'kind':'b','x':4}", "{}"}},
    {"{'type': 'object', 'properties': {'c': {'type': 'string'}, 'p': {'type': 'string'}}, "
     "'allOf': "
     "[{'if': {'properties': {'c': {'const': 'US'}}, 'required': ['c']}, 'then': {'properties': "
     "{'p': {'pattern': '^[0-9]{5}$'}}}}, {'if': {'properties': {'c': {'const': 'NL'}}, "
     "'required': "
     "['c']}, 'then': {'properties': {'p': {'pattern': '^[0-9]{4}[A-Z]{2}$'}}, 'required': "
     "['p']}}]}",
     {"{}", "{'c':'US','p':'12345'}", "{'c':'NL','p':'1234AB'}", "{'c':'US'}",
      "{'c':'DE','p':'x'}"},
     {"{'c':'US','p':'1234AB'}", "{'c':'NL'}", "{'c':'NL','p':'12345'}"}},
    {"{'type': 'integer', 'if': {'minimum': 10}, 'then': {'multipleOf': 10}}",
     {"3", "20"},
     {"11", "25"}},
    /* what depends */
    {"{'type': 'object', 'properties': {'card': {'type': 'integer'}, 'to': {'type': 'string'}, "
     "'zip': {'type': 'null'}}, 'dependentRequired': {'card': ['to'], 'zip': ['to', 'card']}}",
     {"{}", "{'to':'x'}", "{'card':1,'to':'x'}", "{'card':1,'to':'x','zip':null}"},
     {"{'card':1}", "{'zip':null}", "{'to':'x','zip':null}"}},
    {"{'type': 'object', 'properties': {'a': {'type': 'integer'}, 'b': {'type': 'integer'}}, "
     "'dependentSchemas': {'a': {'properties': {'b': {'minimum': 5}}, 'required': ['b']}}}",
     {"{}", "{'b':1}", "{'a':1,'b':5}"},
     {"{'a':1}", "{'a':1,'b':4}"}},
    {"{'type': 'object', 'properties': {'a': {}, 'b': {}}, 'dependencies': {'a': ['b'], 'b': "
     "{'properties': {'a': {'type': 'null'}}}}}",
     {"{}", "{'b':1}", "{'a':null,'b':1}"},
     {"{'a':null}", "{'a':1,'b':1}"}},
    /* unions that meet unions */
    {"{'type': 'object', 'properties': {'a': {}, 'b': {}, 'c': {}}, 'allOf': [{'anyOf': "
     "[{'required': ['a']}, {'required': ['b']}]}, {'anyOf': [{'required': ['c']}, {'properties': "
     "{'a': false}}]}]}",
     {"{'a':1,'c':1}", "{'b':1}"},
     {"{'a':1}", "{'c':1}"}},
    {"{'type': 'object', 'properties': {'id': {'type': 'integer'}, 'name': {'type': 'string'}}, "
     "'oneOf': [{'required': ['id']}, {'required': ['name']}]}",
     {"{'id':1}", "{'name':'x'}"},
     {"{}", "{'id':1,'name':'x'}"}},
    {"{'oneOf': [{'type': 'integer'}, {'type': 'integer', 'minimum': 3}]}", {"1", "2"}, {"3"}},
    /* pydantic: a discriminator that has a default, and is not required */
    {"{'discriminator': {'propertyName': 'k', 'mapping': {'a': '#/$defs/A', 'b': '#/$defs/B'}}, "
     "'oneOf': [{'$ref': '#/$defs/A'}, {'$ref': '#/$defs/B'}], '$defs': {'A': {'type': 'object', "
     "'properties': {'k': {'const': 'a', 'default': 'a', 'type': 'string'}, 'n': {'type': "
     "'integer'}}, 'required': ['n']}, 'B': {'type': 'object', 'properties': {'k': {'const': 'b', "
     "'default': 'b', 'type': 'string'}, 's': {'type': 'string'}}}}}",
     {"{'k':'a','n':1}", "{'k':'b'}", "{'k':'b','s':''}"},
     {"{'n':1}", "{'k':'a'}", "{'k':'a','s':''}"}},
    /* what holds together */
    {"{'allOf': [{'pattern': '^[a-m]+$'}, {'pattern': 'e'}, {'type': 'string', 'maxLength': 3}]}",
     {"'e'", "'abe'"},
     {"'ab'", "'ez'", "'aeae'"}},
    {"{'allOf': [{'type': 'integer', 'multipleOf': 4}, {'multipleOf': 6}]}",
     {"12", "-24"},
     {"4", "6"}},
    {"{'allOf': [{'type': 'array', 'prefixItems': [{'type': 'integer'}], 'items': {'type': "
     "'string'}}, {'items': {'minimum': 3, 'minLength': 1}}], 'maxItems': 2}",
     {"[3]", "[4,'a']"},
     {"[2]", "[3,'']", "['a']"}},
    {"{'allOf': [{'type': 'object', 'additionalProperties': {'type': 'integer'}}, "
     "{'patternProperties': {'^x': {'minimum': 3}}}]}",
     {"{'x':3}"},
     {"{'x':2}", "{'x':'a'}"}},
    {"{'type': 'object', 'patternProperties': {'^s_': {'type': 'string'}, '^n_': {'type': "
     "'null'}}, "
     "'additionalProperties': {'type': 'integer'}}",
     {"{'s_a':'x','n_b':null,'q':1}"},
     {"{'s_a':1}", "{'q':'x'}", "{'n_':0}"}},
    {"{'type': 'object', 'propertyNames': {'maxLength': 4}, 'patternProperties': {'^s_': {'type': "
     "'string'}}, 'additionalProperties': false}",
     {"{'s_a':'x'}", "{}"},
     {"{'s_abc':'x'}", "{'a':'x'}"}},
    {"{'type': 'object', 'propertyNames': {'enum': ['p', 'q', 'r']}, 'additionalProperties': "
     "{'type': 'integer'}, 'minProperties': 2}",
     {"{'p':1,'q':2}", "{'p':1,'q':2,'r':3}"},
     {"{'p':1}", "{'s':1,'q':1}", "{'p':1,'q':'x'}"}},
};
enum { N_CASES = sizeof cases / sizeof cases[0] };

/* Written with ' for ". */
static char *quoted(const char *text)
{
    char *copy = mem_format("%s", text);
    for (char *p = copy; *p; p++)
        *p = *p == '\'' ? '"' : *p;
    return copy;
}

static int stop_id = 899;

static struct grammar *compile(const char *schema, struct err *e)
{
    char *text = mem_format("{\"stops\": [%d], \"value\": %s}", stop_id, schema);
    struct grammar *g;
    grammar_compile(str_of(text), &g, e);
    mem_free(text);
    return g;
}

static bool takes(struct grammar *g, const char *text)
{
    uint32_t state = grammar_start(g);
    for (const char *p = text; *p; p++)
        state = grammar_byte(g, state, (unsigned char)*p);
    return grammar_accepts(g, state);
}

TEST(keywords_take_what_is_valid_and_nothing_else)
{
    for (size_t i = 0; i < N_CASES; i++) {
        struct err e = {0};
        char *schema = quoted(cases[i].schema);
        json_t *root = json_loads(schema, JSON_DECODE_ANY, NULL);
        test_note("%s", schema);
        CHECK(root != NULL);
        struct grammar *g = compile(schema, &e);
        if (!g)
            test_fail(__FILE__, __LINE__, "%s", e.text);
        for (int k = 0; k < 16; k++) {
            bool should = k < 8;
            const char *text = should ? cases[i].good[k] : cases[i].bad[k - 8];
            if (!text)
                continue;
            char *json = quoted(text);
            json_t *v = json_loads(json, JSON_DECODE_ANY, NULL);
            /* What is not taken may be valid: properties that nobody declared. */
            if (should && !(v && is_valid(root, root, v)))
                test_fail(__FILE__, __LINE__, "the test is wrong about %s", json);
            if (takes(g, json) != should)
                test_fail(__FILE__, __LINE__, "%s: %s", should ? "refused" : "taken", json);
            json_decref(v);
            mem_free(json);
        }
        grammar_free(&g);
        json_decref(root);
        mem_free(schema);
    }
}

/* ---- walks ------------------------------------------------------------------------------------------ */

enum { VOCAB = 900, STEPS = 1500 };

static bool has(const uint64_t *bits, int32_t id)
{
    return bits[id >> 6] >> (id & 63) & 1;
}

static int32_t choose(struct rng *r, const uint64_t *bits)
{
    static const char closers[] = "\"]},:";
    int32_t some[VOCAB];
    uint32_t n = 0;
    if (has(bits, stop_id) && rng_below(r, 2) == 0)
        return stop_id;
    for (const char *c = closers; *c; c++)
        if (has(bits, *c) && rng_below(r, 5) == 0)
            return *c;
    for (int32_t id = 0; id < VOCAB; id++)
        if (has(bits, id))
            some[n++] = id;
    CHECK(n > 0);
    return some[rng_below(r, n)];
}

static int walk(struct rng *r, struct grammar_cache *cache, const struct tokenizer *words,
                const char *schema, const json_t *root)
{
    char *text = mem_format("{\"stops\": [%d], \"value\": %s}", stop_id, schema);
    struct constraint *c;
    struct err e = {0};
    struct tokens ids = {0};
    struct buf out = {0};
    CHECK_INT(constraint_new(cache, str_of(text), &c, &e), 0);
    int32_t id = -1;
    while (ids.len < STEPS) {
        const uint64_t *bits = constraint_allow(c, ids.ids, (int)ids.len);
        CHECK(bits != NULL);
        id = choose(r, bits);
        if (id == stop_id)
            break;
        tokens_push(&ids, id);
    }
    if (id == stop_id) {
        tokenizer_decode(words, ids.ids, ids.len, TOKENIZER_KEEP_SPECIAL, &out);
        json_error_t why;
        json_t *v =
            json_loadb(out.data ? out.data : "", out.len, JSON_DECODE_ANY | JSON_ALLOW_NUL, &why);
        if (!v)
            test_fail(__FILE__, __LINE__, "%s: %s", why.text, out.data);
        if (!is_valid(root, root, v))
            test_fail(__FILE__, __LINE__, "not valid: %s", out.data);
        json_decref(v);
    }
    constraint_free(&c);
    tokens_fini(&ids);
    buf_fini(&out);
    mem_free(text);
    return id == stop_id;
}

TEST(keywords_walks_end_in_what_is_valid)
{
    struct rng r = test_rng();
    struct tokenizer *words;
    struct err e = {0};
    int n_over = 0;
    CHECK_INT(tokenizer_write_synthetic("tokenizer.json", VOCAB, &e), 0);
    CHECK_INT(tokenizer_open(".", &words, &e), 0);
    struct token_list *list = token_list_new(words, VOCAB);
    struct grammar_cache *cache = grammar_cache_new(list, 16 << 20);
    stop_id = tokenizer_find(words, STR("[e~["));
    for (size_t i = 0; i < N_CASES; i++) {
        char *schema = quoted(cases[i].schema);
        json_t *root = json_loads(schema, JSON_DECODE_ANY, NULL);
        test_note("%s", schema);
        for (int k = 0; k < 6; k++)
            n_over += walk(&r, cache, words, schema, root);
        json_decref(root);
        mem_free(schema);
    }
    CHECK(n_over > 3 * N_CASES);
    grammar_cache_free(&cache);
    token_list_free(&list);
    tokenizer_free(&words);
}

/* ---- what is refused -------------------------------------------------------------------------------- */

TEST(keywords_that_cannot_be_held_to_are_refused_by_pointer)
{
    static const struct {
        const char *schema, *part;
    } list[] = {
        {"{'properties': {'a/b': {'items': {'not': {'multipleOf': 3}}}}}",
         "schema #/properties/a~1b/items/not/multipleOf: "},
        {"{'anyOf': [{'type': 'null'}, {'if': {'uniqueItems': true}, 'then': false}]}",
         "schema #/anyOf/1/if/uniqueItems: "},
        {"{'type': 'array', 'uniqueItems': true}", "#/uniqueItems: "},
        {"{'type': 'array', 'uniqueItems': true, 'items': {'type': 'string'}}", "#/uniqueItems: "},
        {"{'type': 'array', 'contains': {}, 'minContains': 5000}", "contains: items"},
        {"{'type': 'object', 'not': {'const': {'a': 1}}}", "#/not: one object or array"},
        {"{'$dynamicRef': '#x'}", "#/$dynamicRef: this keyword is not supported"},
        {"{'anyOf': {}}", "#/anyOf: anyOf must be an array"},
        {"{'not': 3}", "#/not: a schema must be an object"},
        {"{'dependentRequired': 3}", "dependentRequired must be an object"},
        {"{'$also': 3}", "schema #"},
        {"{'type': 'string', '$patterns': [3]}", "#/pattern: pattern must be a string"},
        {"{'maxLenght': 3}", "#/maxLenght: this keyword is not supported"},
        {"{'type': 'string', 'pattern': '(?=a)b'}", "#/pattern: looking ahead"},
        {"{'type': 'string', 'pattern': '(a)\\\\1'}", "#/pattern: back references"},
        {"{'type': 'string', 'pattern': 'a\\\\b'}", "\\b is not supported"},
        {"{'type': 'string', 'pattern': '\\\\p{L}'}", "\\p is not supported"},
        {"{'type': 'string', 'pattern': '(^a)'}", "an anchor must be at an end"},
        {"{'type': 'string', 'pattern': 'a{3,2}'}", "a quantifier that cannot be"},
        {"{'type': 'string', 'pattern': '(a'}", "a group is not closed"},
        {"{'type': 'string', 'pattern': 'a)'}", "parenthesis"},
        {"{'type': 'string', 'pattern': '[b-a]'}", "backwards"},
        {"{'type': 'string', 'pattern': '[a'}", "at character 3"},
        {"{'type': 'string', 'pattern': '*a'}", "needs a backslash"},
        {"{'type': 'string', 'pattern': '((a{1000}){1000}){1000}'}", "too large"},
        {"{'type': 'string', 'pattern': '(((){1000}){1000}){1000}'}", "too large"},
        {"{'type': 'string', 'pattern': '^a{900}$', 'maxLength': 4000}", "too large"},
        {"{'type': 'string', 'pattern': 3}", "pattern must be a string"},
        {"{'type': 'number', 'multipleOf': 0.3}", "multipleOf 0.3"},
        {"{'type': 'integer', 'multipleOf': 1000}", "multipleOf 1000"},
        {"{'type': 'integer', 'multipleOf': 0}", "more than 0"},
        {"{'type': 'number', 'minimum': 0.1234567890123456789}", "at most 15 digits"},
        {"{'type': 'object', 'minProperties': 2}", "minProperties"},
        {"{'allOf': [{'multipleOf': 0.1}, {'multipleOf': 0.01}]}", "\"multipleOf\" is said twice"},
        {"{'allOf': [{'pattern': '(a|b)*a(a|b){12}$'}, {'pattern': 'b'}]}", "too large together"},
        {"{'allOf': [{'$ref': '#'}, {'$ref': '#'}]}", "schema #: "},
        {"{'anyOf': [{'$ref': '#'}, {'$ref': '#'}], 'enum': [1]}", "schema #"},
    };
    for (size_t i = 0; i < sizeof list / sizeof list[0]; i++) {
        struct err e = {0};
        char *schema = quoted(list[i].schema);
        test_note("%s", schema);
        struct grammar *g = compile(schema, &e);
        CHECK(!g);
        CHECK_HAS(e.text, list[i].part);
        mem_free(schema);
    }
}

/* Alternatives multiply: what would take seconds is refused, what people write is not. */
TEST(keywords_whose_alternatives_multiply_are_bounded)
{
    struct buf chain = {0}, crowd = {0}, product = {0}, twice = {0};
    struct err e = {0};
    buf_puts(&chain, "{\"type\":\"object\",\"properties\":{\"c\":{\"enum\":[0,1,2,3,4,5,6,7,8,9]},"
                     "\"z\":{\"type\":\"integer\"}},\"allOf\":[{}");
    for (int i = 0; i < 10; i++)
        buf_printf(&chain,
                   ",{\"if\":{\"properties\":{\"c\":{\"const\":%d}},\"required\":[\"c\"]},"
                   "\"then\":{\"properties\":{\"z\":{\"const\":%d}},\"required\":[\"z\"]}}",
                   i, i * i);
    buf_puts(&chain, "]}");
    struct grammar *g = compile(chain.data, &e);
    CHECK(g && takes(g, "{\"c\":7,\"z\":49}") && !takes(g, "{\"c\":7,\"z\":36}"));
    CHECK(takes(g, "{}") && takes(g, "{\"z\":5}") && !takes(g, "{\"c\":3}"));
    grammar_free(&g);
    buf_puts(&crowd, "{\"oneOf\":[true");
    buf_puts(&product, "{\"type\":\"string\",\"allOf\":[{}");
    buf_puts(&twice, "{\"$ref\":\"#/$defs/d0\",\"$defs\":{\"d40\":{\"minLength\":1}");
    for (int i = 0; i < 40; i++) {
        for (int k = 0; k < 10; k++)
            buf_printf(&crowd, ",{\"required\":[\"p%d\"]}", 10 * i + k);
        buf_printf(&product, ",{\"anyOf\":[{\"minLength\":%d},{\"maxLength\":%d}]}", i, 100 - i);
        buf_printf(&twice,
                   ",\"d%d\":{\"allOf\":[{\"$ref\":\"#/$defs/d%d\"},{\"$ref\":\"#/$defs/d%d\"}]}",
                   i, i + 1, i + 1);
    }
    buf_puts(&crowd, "]}");
    buf_puts(&product, "]}");
    buf_puts(&twice, "}}");
    CHECK(!compile(crowd.data, &e));
    CHECK_HAS(e.text, "#/oneOf: too much to compare");
    CHECK(!compile(product.data, &e));
    CHECK_HAS(e.text, "too");
    CHECK(!compile(twice.data, &e));
    CHECK_HAS(e.text, "too much to compare");
    buf_fini(&chain);
    buf_fini(&crowd);
    buf_fini(&product);
    buf_fini(&twice);
}

TEST(keywords_that_contradict_each_other_are_refused)
{
    static const struct {
        const char *schema, *part;
    } list[] = {
        {"{'enum': []}", "no value of enum"},
        {"{'type': 'string', 'minLength': 3, 'maxLength': 2}",
         "minLength 3 is more than maxLength 2"},
        {"{'type': 'integer', 'const': 'x'}", "no value of const"},
        {"{'type': 'integer', 'const': 5, 'maximum': 4}", "no value of const"},
        {"{'type': 'object', 'required': ['a'], 'properties': {'a': false}}",
         "#/properties/a: \"a\" is required"},
        {"{'type': 'object', 'required': ['a'], 'additionalProperties': false}",
         "\"a\" is required and not allowed"},
        {"{'type': 'string', 'pattern': '^a{3}$', 'maxLength': 2}", "cannot be satisfied"},
        {"{'type': 'string', 'pattern': '^[]$'}", "cannot be satisfied"},
        {"{'type': 'number', 'minimum': 3, 'exclusiveMaximum': 3}", "no number is from"},
        {"{'type': 'integer', 'exclusiveMinimum': 3, 'exclusiveMaximum': 4}", "no whole number"},
        {"{'type': 'integer', 'multipleOf': 100, 'minimum': 1, 'maximum': 99}",
         "cannot be satisfied"},
        {"{'allOf': [{'type': 'string'}, {'type': 'integer'}]}", "no type is left"},
        {"{'allOf': [{'const': 1}, {'const': 2}]}", "nothing is allowed"},
        {"{'type': 'array', 'prefixItems': [{}], 'items': false, 'minItems': 2}",
         "minItems wants more"},
        {"{'type': 'object', 'properties': {'a': {}}, 'minProperties': 2}", "cannot be satisfied"},
        {"{'type': 'object', 'properties': {'a': {'$ref': '#'}}, 'required': ['a']}",
         "cannot be satisfied"},
    };
    for (size_t i = 0; i < sizeof list / sizeof list[0]; i++) {
        struct err e = {0};
        char *schema = quoted(list[i].schema);
        test_note("%s", schema);
        struct grammar *g = compile(schema, &e);
        CHECK(!g);
        CHECK_HAS(e.text, list[i].part);
        CHECK_HAS(e.text, "schema #");
        mem_free(schema);
    }
}
