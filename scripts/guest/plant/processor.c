// SPDX-License-Identifier: GPL-2.0
/* A processor that is held in an interrupt, in what an interrupt has left to be done, or in an NMI. */

#include <linux/hrtimer.h>
#include <linux/interrupt.h>
#include <linux/ktime.h>
#include <linux/smp.h>
#include <asm/apic.h>
#include <asm/nmi.h>

#include "plant.h"

#define NMI_NAME "lucos_plant"

static struct hrtimer in_irq, for_softirq;
static struct tasklet_struct in_softirq;

static enum hrtimer_restart plant_in_irq(struct hrtimer *timer)
{
	plant_spin();
	return HRTIMER_NORESTART;
}

static void plant_in_softirq(struct tasklet_struct *tasklet)
{
	plant_spin();
}

/* A softirq that is raised in an interrupt runs at its end; one that is raised elsewhere may come by other ways. */
static enum hrtimer_restart plant_raise(struct hrtimer *timer)
{
	tasklet_schedule(&in_softirq);
	return HRTIMER_NORESTART;
}

static int plant_in_nmi(unsigned int type, struct pt_regs *regs)
{
	/* NMIs have no sender: this one may be somebody else's. */
	if (smp_processor_id() != plant_cpu() || !READ_ONCE(plant_held))
		return NMI_DONE;
	plant_spin();
	return NMI_HANDLED;
}

static void start_timer(void *timer)
{
	hrtimer_start(timer, ms_to_ktime(1), HRTIMER_MODE_REL_PINNED_HARD);
}

int plant_begin_irq(void)
{
	return smp_call_function_single(plant_cpu(), start_timer, &in_irq, 1);
}

int plant_begin_softirq(void)
{
	return smp_call_function_single(plant_cpu(), start_timer, &for_softirq, 1);
}

int plant_begin_nmi(void)
{
	int error = register_nmi_handler(NMI_LOCAL, plant_in_nmi, 0, NMI_NAME);

	if (!error)
		apic->send_IPI(plant_cpu(), NMI_VECTOR);
	return error;
}

void plant_end_nmi(void)
{
	unregister_nmi_handler(NMI_LOCAL, NMI_NAME);
}

void plant_prepare_processor(void)
{
	hrtimer_init(&in_irq, CLOCK_MONOTONIC, HRTIMER_MODE_REL_PINNED_HARD);
	in_irq.function = plant_in_irq;
	hrtimer_init(&for_softirq, CLOCK_MONOTONIC, HRTIMER_MODE_REL_PINNED_HARD);
	for_softirq.function = plant_raise;
	tasklet_setup(&in_softirq, plant_in_softirq);
}
