/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The hypercalls between a guest and its VMM: the twin of the crate lucos-abi, whose documentation says what each call
 * does. abi/tests/header.rs compares the two.
 */
#ifndef LUCOS_ABI_H
#define LUCOS_ABI_H

#ifdef __KERNEL__
#include <linux/types.h>
typedef u32 lucos_u32;
typedef u64 lucos_u64;
#else
#include <stdint.h>
typedef uint32_t lucos_u32;
typedef uint64_t lucos_u64;
#endif

#define LUCOS_PORT 0x4c54
#define LUCOS_PORTS 4
#define LUCOS_VERSION 1
#define LUCOS_CALL_BYTES 0x10000
#define LUCOS_UPLOAD_BYTES 0x1400000
#define LUCOS_MODULE_BYTES 0x1000000
#define LUCOS_MODULE_NAME_BYTES 56
#define LUCOS_PATCH_NAME_BYTES 255
#define LUCOS_ERRNO_MAX 4095
#define LUCOS_WAKE '\n'

/* Calls: the low half of rbx; the high half is LUCOS_VERSION. */
enum lucos_call {
	LUCOS_CALL_HELLO = 1,
	LUCOS_CALL_NEXT = 2,
	LUCOS_CALL_READ = 3,
	LUCOS_CALL_REPORT = 4,
	LUCOS_CALL_WRITE = 5,
	LUCOS_CALL_SUBMIT = 6,
	LUCOS_CALL_STATUS = 7,
};

/* What goes wrong: eax is the negative of one of these. */
enum lucos_error {
	LUCOS_ERROR_ABSENT = 1,
	LUCOS_ERROR_BAD_VERSION = 2,
	LUCOS_ERROR_BAD_CALL = 3,
	LUCOS_ERROR_BAD_MODE = 4,
	LUCOS_ERROR_BAD_ADDRESS = 5,
	LUCOS_ERROR_READ_ONLY = 6,
	LUCOS_ERROR_AGAIN = 7,
	LUCOS_ERROR_BAD_LENGTH = 8,
	LUCOS_ERROR_BAD_ARGUMENT = 9,
	LUCOS_ERROR_BAD_OFFSET = 10,
	LUCOS_ERROR_UNKNOWN_REQUEST = 11,
	LUCOS_ERROR_TOO_LARGE = 12,
	LUCOS_ERROR_NO_AGENT = 13,
	LUCOS_ERROR_BUSY = 14,
	LUCOS_ERROR_DENIED = 15,
};

enum lucos_lockdown {
	LUCOS_LOCKDOWN_NONE = 0,
	LUCOS_LOCKDOWN_INTEGRITY = 1,
	LUCOS_LOCKDOWN_CONFIDENTIALITY = 2,
	LUCOS_LOCKDOWN_UNKNOWN = 3,
};

enum lucos_known {
	LUCOS_KNOWN_NO = 0,
	LUCOS_KNOWN_YES = 1,
	LUCOS_KNOWN_UNKNOWN = 2,
};

enum lucos_request_kind {
	LUCOS_REQUEST_LOAD = 1,
	LUCOS_REQUEST_UNLOAD = 2,
};

/* Every field is little-endian, as x86 is. */
struct lucos_hello {
	lucos_u32 pid;
	lucos_u32 lockdown;
	lucos_u32 sig_enforce;
	lucos_u32 modules_disabled;
	lucos_u64 taint;
	unsigned char version[32];
	unsigned char release[64];
};

struct lucos_request {
	lucos_u32 id;
	lucos_u32 kind;
	lucos_u64 bytes;
	unsigned char name[LUCOS_MODULE_NAME_BYTES];
};

struct lucos_report {
	lucos_u32 id;
	lucos_u32 errno_value;
	lucos_u64 taint;
	lucos_u32 text_bytes;
	lucos_u32 reserved;
};

/* rdi of the calls that move a part of something with a number. */
static inline lucos_u64 lucos_place(lucos_u32 number, lucos_u64 offset)
{
	return (lucos_u64)number << 40 | (offset & 0xffffffffffULL);
}

/* Makes a call; returns what eax says. */
static inline int lucos_call(enum lucos_call call, void *buffer, lucos_u64 length, lucos_u64 place)
{
	lucos_u32 answer;

	__asm__ volatile("inl %%dx, %%eax"
			 : "=a"(answer)
			 : "d"(LUCOS_PORT), "b"((lucos_u64)LUCOS_VERSION << 32 | (lucos_u64)call), "c"(buffer),
			   "S"(length), "D"(place)
			 : "memory");
	return (int)answer;
}

#endif
