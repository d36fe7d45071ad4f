/* JSON of typed values: checked when it is read, in one form when it is written. */
#include "internal.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DEPTH_MAX 128

const fs_type fs_bool = {FS_BOOL, sizeof(bool), NULL, 0};
const fs_type fs_u8 = {FS_U8, 1, NULL, 0}, fs_u16 = {FS_U16, 2, NULL, 0};
const fs_type fs_u32 = {FS_U32, 4, NULL, 0}, fs_u64 = {FS_U64, 8, NULL, 0};
const fs_type fs_i8 = {FS_I8, 1, NULL, 0}, fs_i16 = {FS_I16, 2, NULL, 0};
const fs_type fs_i32 = {FS_I32, 4, NULL, 0}, fs_i64 = {FS_I64, 8, NULL, 0};
const fs_type fs_f64 = {FS_F64, 8, NULL, 0};
const fs_type fs_string = {FS_STRING, sizeof(fs_text), NULL, 0};
const fs_type fs_day = {FS_DATE, sizeof(fs_date), NULL, 0};
const fs_type fs_instant = {FS_TIME, sizeof(fs_time), NULL, 0};
const fs_type fs_null = {FS_NULL, 0, NULL, 0};

typedef struct {
    const char *start, *at, *end;
    int depth;
    fs_arena *arena;
} reader;

/* The next character behind spaces; 0 at the end. */
static char peek(reader *r) {
    while (r->at < r->end) {
        if (*r->at != ' ' && *r->at != '\n' && *r->at != '\t' && *r->at != '\r') {
            return *r->at;
        }
        r->at++;
    }
    return 0;
}

static bool at_end(reader *r) { return peek(r) == 0 && r->at >= r->end; }

static bool eat(reader *r, char character) {
    if (at_end(r) || *r->at != character) {
        return false;
    }
    r->at++;
    return true;
}

static bool word(reader *r, const char *wanted) {
    size_t length = strlen(wanted);
    peek(r);
    if ((size_t)(r->end - r->at) < length || memcmp(r->at, wanted, length) != 0) {
        return false;
    }
    r->at += length;
    return true;
}

static const char *found(reader *r) {
    char next = peek(r);
    if (at_end(r)) {
        return "the end";
    }
    switch (next) {
    case '{': return "an object";
    case '[': return "a list";
    case '"': return "a text";
    case 't':
    case 'f': return "true or false";
    case 'n': return "null";
    default: return next == '-' || (next >= '0' && next <= '9') ? "a number" : "no JSON";
    }
}

static bool expected(reader *r, const char *what) {
    return fs_mismatch("expected %s, found %s", what, found(r));
}

static bool expected_here(reader *r, const char *what) {
    if (r->at >= r->end) {
        return fs_mismatch("expected %s, found the end", what);
    }
    return fs_mismatch("expected %s at byte %d", what, (int)(r->at - r->start));
}

static bool enter(reader *r) {
    r->depth++;
    return r->depth <= DEPTH_MAX || fs_mismatch("JSON is nested more than %d deep", DEPTH_MAX);
}

static bool digits(reader *r) {
    const char *from = r->at;
    while (r->at < r->end && *r->at >= '0' && *r->at <= '9') {
        r->at++;
    }
    return r->at > from || expected_here(r, "a digit");
}

/* Takes a number, and says whether it has neither fraction nor exponent. */
static bool number(reader *r, fs_text *text, bool *integer) {
    peek(r);
    const char *from = r->at;
    *integer = true;
    if (r->at < r->end && *r->at == '-') {
        r->at++;
    }
    if (r->at < r->end && *r->at == '0') {
        r->at++;
    } else if (!digits(r)) {
        return false;
    }
    if (r->at < r->end && *r->at == '.') {
        r->at++;
        *integer = false;
        if (!digits(r)) {
            return false;
        }
    }
    if (r->at < r->end && (*r->at == 'e' || *r->at == 'E')) {
        r->at++;
        *integer = false;
        if (r->at < r->end && (*r->at == '+' || *r->at == '-')) {
            r->at++;
        }
        if (!digits(r)) {
            return false;
        }
    }
    *text = (fs_text){from, (size_t)(r->at - from)};
    return true;
}

/* Takes four hexadecimal digits; -1 if there are none. */
static int32_t hexadecimal(reader *r) {
    if (r->end - r->at < 4) {
        return -1;
    }
    int32_t found = 0;
    for (int place = 0; place < 4; place++) {
        char digit = *r->at++;
        int32_t value = digit >= '0' && digit <= '9' ? digit - '0'
            : (digit | 32) >= 'a' && (digit | 32) <= 'f' ? (digit | 32) - 'a' + 10 : -1;
        if (value < 0) {
            return -1;
        }
        found = found * 16 + value;
    }
    return found;
}

static void put_rune(fs_buffer *buffer, int32_t rune) {
    if (rune < 0x80) {
        fs_put_char(buffer, (char)rune);
        return;
    }
    int more = rune >= 0x10000 ? 3 : rune >= 0x800 ? 2 : 1;
    int first = more == 3 ? 0xF0 : more == 2 ? 0xE0 : 0xC0;
    fs_put_char(buffer, (char)(first | rune >> (6 * more)));
    while (more-- > 0) {
        fs_put_char(buffer, (char)(0x80 | (rune >> (6 * more) & 0x3F)));
    }
}

static bool unicode(reader *r, fs_buffer *buffer) {
    int32_t rune = hexadecimal(r);
    if (rune < 0) {
        return expected_here(r, "four hexadecimal digits");
    }
    if (rune >= 0xD800 && rune <= 0xDFFF) {
        bool pair = rune < 0xDC00 && r->end - r->at >= 2 && r->at[0] == '\\' && r->at[1] == 'u';
        r->at += pair ? 2 : 0;
        int32_t low = pair ? hexadecimal(r) : -1;
        if (low < 0xDC00 || low > 0xDFFF) {
            return fs_mismatch("half of a pair of surrogates is no text");
        }
        rune = 0x10000 + ((rune - 0xD800) << 10) + (low - 0xDC00);
    }
    put_rune(buffer, rune);
    return true;
}

static bool escape(reader *r, fs_buffer *buffer) {
    static const char escapes[] = "\"\\/bfnrt", meant[] = "\"\\/\b\f\n\r\t";
    if (r->at >= r->end) {
        return expected_here(r, "an escape");
    }
    char kind = *r->at++;
    if (kind == 'u') {
        return unicode(r, buffer);
    }
    const char *place = kind == 0 ? NULL : strchr(escapes, kind);
    if (place == NULL) {
        r->at--;
        return expected_here(r, "an escape");
    }
    fs_put_char(buffer, meant[place - escapes]);
    return true;
}

/* Takes a text. It may be part of what is read. */
static bool string(reader *r, fs_text *text) {
    if (peek(r) != '"') {
        return expected(r, "a text");
    }
    const char *from = ++r->at;
    fs_buffer buffer = {.arena = r->arena};
    bool escaped = false;
    for (; r->at < r->end; r->at++) {
        unsigned char next = (unsigned char)*r->at;
        if (next == '"') {
            fs_text last = {from, (size_t)(r->at++ - from)};
            if (!escaped) {
                *text = last;
            } else {
                fs_put(&buffer, last.at, last.length);
                *text = fs_written(&buffer);
            }
            return true;
        }
        if (next < 0x20) {
            return expected_here(r, "no control character in a text");
        }
        if (next == '\\') {
            escaped = true;
            fs_put(&buffer, from, (size_t)(r->at - from));
            r->at++;
            if (!escape(r, &buffer)) {
                return false;
            }
            from = r->at--;
        }
    }
    return expected_here(r, "the end of a text");
}

static bool skip(reader *r) {
    fs_text text;
    bool integer;
    char open = peek(r);
    if (open == '"') {
        return string(r, &text);
    }
    if (open == '{' || open == '[') {
        char close = open == '{' ? '}' : ']';
        r->at++;
        if (!enter(r)) {
            return false;
        }
        for (bool first = true; !eat(r, close); first = false) {
            if (!first && !eat(r, ',')) {
                return expected_here(r, "a comma or the end");
            }
            if (open == '{' && (!string(r, &text) || (!eat(r, ':') && !expected_here(r, "a colon")))) {
                return false;
            }
            if (!skip(r)) {
                return false;
            }
        }
        r->depth--;
        return true;
    }
    if (word(r, "null") || word(r, "true") || word(r, "false")) {
        return true;
    }
    if (open != '-' && (open < '0' || open > '9')) {
        return expected_here(r, "a value");
    }
    return number(r, &text, &integer);
}

/* ---- Reading values. ---- */

static bool decode(reader *r, const fs_type *type, void *into);

static bool is_signed(fs_kind kind) { return kind >= FS_I8 && kind <= FS_I64; }

static uint64_t most(const fs_type *type) {
    uint64_t all = ~(uint64_t)0 >> (64 - 8 * type->size);
    return is_signed(type->kind) ? all >> 1 : all;
}

static bool out_of_range(const fs_type *type, fs_text text) {
    uint64_t high = most(type);
    if (is_signed(type->kind)) {
        return fs_mismatch("expected an integer from -%llu to %llu, found %.*s",
            (unsigned long long)high + 1, (unsigned long long)high, (int)text.length, text.at);
    }
    return fs_mismatch("expected an integer from 0 to %llu, found %.*s", (unsigned long long)high,
        (int)text.length, text.at);
}

static bool decode_integer(reader *r, const fs_type *type, void *into) {
    if (strcmp(found(r), "a number") != 0) {
        return expected(r, "an integer");
    }
    fs_text text;
    bool integer;
    if (!number(r, &text, &integer)) {
        return false;
    }
    bool negative = text.at[0] == '-';
    uint64_t limit = most(type), value = 0;
    if (negative) {
        limit = is_signed(type->kind) ? limit + 1 : 0;
    }
    for (size_t place = negative; integer && place < text.length; place++) {
        uint64_t digit = (uint64_t)(text.at[place] - '0');
        if (digit > limit || value > (limit - digit) / 10) {
            integer = false;
        }
        value = value * 10 + digit;
    }
    if (!integer) {
        return out_of_range(type, text);
    }
    value = negative ? 0 - value : value;
    /* WebAssembly and the machines of tests are little-endian. */
    memcpy(into, &value, type->size);
    return true;
}

static bool decode_float(reader *r, void *into) {
    if (strcmp(found(r), "a number") != 0) {
        return expected(r, "a number");
    }
    fs_text text;
    bool integer;
    if (!number(r, &text, &integer)) {
        return false;
    }
    double value = strtod(fs_keep(r->arena, text).at, NULL);
    if (!isfinite(value)) {
        return fs_mismatch("expected a finite number, found %.*s", (int)text.length, text.at);
    }
    memcpy(into, &value, sizeof(value));
    return true;
}

static bool decode_field(reader *r, const fs_type *type, uint64_t *seen, void *into) {
    fs_text name;
    if (!string(r, &name)) {
        return false;
    }
    if (!eat(r, ':')) {
        return expected_here(r, "a colon");
    }
    for (size_t place = 0; place < type->count; place++) {
        const fs_field *field = &type->fields[place];
        if (!fs_text_equal(name, fs_text_of(field->name))) {
            continue;
        }
        if (*seen >> place & 1) {
            return fs_mismatch("two fields `%s`", field->name);
        }
        *seen |= (uint64_t)1 << place;
        if (field->optional && word(r, "null")) {
            return true;
        }
        if (!decode(r, field->type, (char *)into + field->offset)) {
            fs_within("%s: ", field->name);
            return false;
        }
        return true;
    }
    return skip(r);
}

static bool decode_record(reader *r, const fs_type *type, void *into) {
    uint64_t seen = 0;
    if (!eat(r, '{')) {
        return expected(r, "an object");
    }
    if (!enter(r)) {
        return false;
    }
    for (bool first = true; !eat(r, '}'); first = false) {
        if (!first && !eat(r, ',')) {
            return expected_here(r, "a comma or the end of an object");
        }
        if (!decode_field(r, type, &seen, into)) {
            return false;
        }
    }
    r->depth--;
    for (size_t place = 0; place < type->count; place++) {
        if (!type->fields[place].optional && !(seen >> place & 1)) {
            return fs_mismatch("missing field `%s`", type->fields[place].name);
        }
    }
    return true;
}

static bool decode(reader *r, const fs_type *type, void *into) {
    fs_text text;
    switch (type->kind) {
    case FS_BOOL:
        if (word(r, "true")) {
            *(bool *)into = true;
            return true;
        }
        *(bool *)into = false;
        return word(r, "false") || expected(r, "true or false");
    case FS_F64:
        return decode_float(r, into);
    case FS_STRING:
        if (!string(r, &text)) {
            return false;
        }
        *(fs_text *)into = fs_keep(r->arena, text);
        return true;
    case FS_DATE:
        return string(r, &text) &&
            (fs_read_date(text, into) || fs_mismatch("expected a date such as 2026-11-23, 1970 to 9999"));
    case FS_TIME:
        return string(r, &text) &&
            (fs_read_time(text, into) ||
                fs_mismatch("expected a time such as 2026-11-23T14:05:06Z, 1970 to 2554"));
    case FS_RECORD_KIND:
        return decode_record(r, type, into);
    case FS_NULL:
        return word(r, "null") || expected(r, "null");
    default:
        return decode_integer(r, type, into);
    }
}

bool fs_decode(fs_arena *arena, fs_text json, const fs_type *type, void *into) {
    if (!fs_is_utf8(json)) {
        return fs_mismatch("the data is not UTF-8");
    }
    reader r = {json.at, json.at, json.at + json.length, 0, arena};
    return decode(&r, type, into) && (at_end(&r) || expected_here(&r, "the end"));
}

/* ---- Writing values. ---- */

static bool encode_text(fs_buffer *buffer, fs_text text) {
    static const char meant[] = "\"\\\b\f\n\r\t", escapes[] = "\"\\bfnrt";
    if (!fs_is_utf8(text)) {
        return fs_mismatch("a text is not UTF-8");
    }
    fs_put_char(buffer, '"');
    size_t from = 0;
    for (size_t at = 0; at < text.length; at++) {
        unsigned char next = (unsigned char)text.at[at];
        if (next >= 0x20 && next != '"' && next != '\\') {
            continue;
        }
        fs_put(buffer, text.at + from, at - from);
        from = at + 1;
        const char *place = next == 0 ? NULL : strchr(meant, next);
        char escape[7];
        int length = place != NULL ? snprintf(escape, sizeof(escape), "\\%c", escapes[place - meant])
                                   : snprintf(escape, sizeof(escape), "\\u%04x", next);
        fs_put(buffer, escape, (size_t)length);
    }
    fs_put(buffer, text.at + from, text.length - from);
    fs_put_char(buffer, '"');
    return true;
}

/* Writes a number as all SDKs do: 1.0, 0.00001, 1e-7 and 1e16. */
static bool encode_float(fs_buffer *buffer, double number) {
    if (!isfinite(number)) {
        return fs_mismatch("expected a finite number");
    }
    char text[40];
    int precision = 0;
    /* The fewest digits that give the same number. */
    do {
        snprintf(text, sizeof(text), "%.*e", precision++, number);
    } while (strtod(text, NULL) != number);
    char *exponent = strchr(text, 'e');
    int power = atoi(exponent + 1);
    *exponent = 0;
    if (power >= 16 || power < -5) {
        fs_put_string(buffer, text);
        snprintf(text, sizeof(text), "e%d", power);
        fs_put_string(buffer, text);
        return true;
    }
    int decimals = precision - 1 - power;
    snprintf(text, sizeof(text), "%.*f", decimals > 1 ? decimals : 1, number);
    fs_put_string(buffer, text);
    return true;
}

static bool encode_record(fs_buffer *buffer, const fs_type *type, const char *value) {
    for (size_t place = 0; place < type->count; place++) {
        const fs_field *field = &type->fields[place];
        fs_put_char(buffer, place == 0 ? '{' : ',');
        if (!encode_text(buffer, fs_text_of(field->name))) {
            return false;
        }
        fs_put_char(buffer, ':');
        if (!fs_encode(buffer, field->type, value + field->offset)) {
            fs_within("%s: ", field->name);
            return false;
        }
    }
    fs_put_char(buffer, '}');
    return true;
}

bool fs_encode(fs_buffer *buffer, const fs_type *type, const void *value) {
    switch (type->kind) {
    case FS_BOOL:
        fs_put_string(buffer, *(const bool *)value ? "true" : "false");
        return true;
    case FS_F64:
        return encode_float(buffer, *(const double *)value);
    case FS_STRING:
        return encode_text(buffer, *(const fs_text *)value);
    case FS_DATE:
        fs_put_char(buffer, '"');
        fs_put_date(buffer, *(const fs_date *)value);
        fs_put_char(buffer, '"');
        return ((const fs_date *)value)->days >= 0 && ((const fs_date *)value)->days <= 2932896
            ? true : fs_mismatch("expected a date from 1970 to 9999");
    case FS_TIME:
        fs_put_char(buffer, '"');
        fs_put_time(buffer, *(const fs_time *)value);
        fs_put_char(buffer, '"');
        return true;
    case FS_RECORD_KIND:
        return encode_record(buffer, type, value);
    case FS_NULL:
        fs_put_string(buffer, "null");
        return true;
    default: {
        uint64_t number = 0;
        memcpy(&number, value, type->size);
        unsigned shift = 64 - 8 * (unsigned)type->size;
        int64_t extended = (int64_t)(number << shift) >> shift;
        if (is_signed(type->kind) && extended < 0) {
            fs_put_char(buffer, '-');
            number = 0 - (uint64_t)extended;
        }
        fs_put_digits(buffer, number, 1);
        return true;
    }
    }
}

bool fs_has_texts(const fs_type *type) {
    for (size_t place = 0; place < type->count; place++) {
        if (fs_has_texts(type->fields[place].type)) {
            return true;
        }
    }
    return type->kind == FS_STRING;
}
