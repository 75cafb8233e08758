// SPDX-License-Identifier: Apache-2.0
/*
 * CVE-2024-53187 (io_uring/rsrc.c): memory for io_uring that ends behind the last address there is. Its size in pages is
 * counted with an end that has wrapped around, and comes out as some 2^64.
 */
#define _GNU_SOURCE
#include "holes.h"

#include <errno.h>
#include <linux/io_uring.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PAGE 4096UL

/* Has `entries` buffers of 16 bytes at `address` used as a ring, and then no longer. */
static int provide(int ring, unsigned long address, unsigned entries)
{
	struct io_uring_buf_reg wish = { .ring_addr = address, .ring_entries = entries };

	if (syscall(SYS_io_uring_register, ring, IORING_REGISTER_PBUF_RING, &wish, 1))
		return -1;
	return syscall(SYS_io_uring_register, ring, IORING_UNREGISTER_PBUF_RING, &wish, 1);
}

enum verdict io_uring_pin(void)
{
	struct io_uring_params params = { 0 };
	int ring = syscall(SYS_io_uring_setup, 1, &params);
	void *memory = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (ring < 0)
		cannot_tell("no io_uring");
	if (memory == MAP_FAILED)
		cannot_tell("no memory");
	/* So that the answer to the other is not for a reason of its own. */
	if (provide(ring, (unsigned long)memory, 1))
		cannot_tell("buffers in good memory are refused");
	/* From the last page on. */
	errno = 0;
	if (!provide(ring, -PAGE, 1 << 15))
		cannot_tell("memory that is none is taken");
	/* No kernel has memory for a list of so many pages: that is how the wrong number shows, and why it does no harm here. */
	if (errno == ENOMEM)
		return OPEN;
	if (errno != EOVERFLOW)
		cannot_tell("IORING_REGISTER_PBUF_RING");
	return CLOSED;
}
