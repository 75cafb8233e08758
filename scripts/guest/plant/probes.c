// SPDX-License-Identifier: GPL-2.0
/* Threads that are held in the handler of a kprobe, and threads that are off the list of tasks. */

#include <linux/delay.h>
#include <linux/kprobes.h>
#include <linux/sched.h>
#include <linux/string.h>

#include "plant.h"

#define EXITING "plant_exiting"
/* The first byte of a jump with 32 bits (Intel SDM vol. 2A, JMP), which the optimizer writes. */
#define JMP_REL32 0xe9
#define OPTIMIZER_MS 20000
#define POLL_MS 10

static int plant_in_probe(struct kprobe *probe, struct pt_regs *regs)
{
	plant_spin();
	return 0;
}

/* A probe with a second handler is never made a jump. */
static void plant_behind_probe(struct kprobe *probe, struct pt_regs *regs, unsigned long flags)
{
}

static int plant_probed_thread(void *unused)
{
	plant_probed();
	return 0;
}

static struct kprobe probe;

static u8 *site(void)
{
	return (u8 *)plant_probed + plant_probed_site;
}

/* A probe that has been registered cannot be registered again as it is. */
static int begin_probe(kprobe_post_handler_t behind)
{
	memset(&probe, 0, sizeof(probe));
	probe.addr = (kprobe_opcode_t *)site();
	probe.pre_handler = plant_in_probe;
	probe.post_handler = behind;
	return register_kprobe(&probe);
}

int plant_begin_kprobe(void)
{
	int error = begin_probe(plant_behind_probe);

	return error ? error : plant_threads(plant_probed_thread, "plant_kprobe", 1);
}

int plant_begin_optprobe(void)
{
	int ms = 0, error = begin_probe(NULL);

	if (error)
		return error;
	while (READ_ONCE(*site()) != JMP_REL32) {
		if (ms >= OPTIMIZER_MS)
			return -ETIMEDOUT;
		msleep(POLL_MS);
		ms += POLL_MS;
	}
	return plant_threads(plant_probed_thread, "plant_optprobe", 1);
}

void plant_end_probe(void)
{
	unregister_kprobe(&probe);
}

/* Where threads are that have left the list of tasks, and can still be switched out. */
static noinline void plant_in_exit(void)
{
	plant_spin();
}

static int plant_divert(struct kprobe *unused, struct pt_regs *regs)
{
	if (strcmp(current->comm, EXITING))
		return 0;
	/* It returns to the caller of the function with the probe, which only tells others of the exit. */
	regs->ip = (unsigned long)plant_in_exit;
	return 1;
}

/*
 * do_exit() calls it right behind exit_notify(), which has released a thread that nobody waits for (kernel/exit.c of 6.1
 * and 6.12), such as those of the kernel.
 */
static struct kprobe exit_probe;

static int plant_exiter(void *unused)
{
	return 0;
}

int plant_begin_exiting(void)
{
	int error;

	memset(&exit_probe, 0, sizeof(exit_probe));
	exit_probe.symbol_name = "proc_exit_connector";
	exit_probe.pre_handler = plant_divert;
	error = register_kprobe(&exit_probe);
	return error ? error : plant_threads(plant_exiter, EXITING, 2);
}

void plant_end_exiting(void)
{
	unregister_kprobe(&exit_probe);
}
