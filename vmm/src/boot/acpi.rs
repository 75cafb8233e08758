//! ACPI tables: what finds a stock kernel its processors, interrupts, PCI bus and power switch.
//!
//! Debian's cloud kernel has no MP-table parser, so SMP comes from the MADT alone.

use acpi_tables::facs::FACS;
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace as GasSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, AmlSink, aml};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use super::layout::{ACPI_TABLES, HIGH_RAM};
use crate::device::acpi_pm::{PM1_CONTROL, PM1_EVENT, RESET_REGISTER, RESET_VALUE, SCI, SLEEP_TYPE_S5};
use crate::device::pci::MMIO_WINDOW;
use crate::device::serial::{COM1, COM2, SerialPort};
use crate::memory::GuestMemory;

const OEM: [u8; 6] = *b"LUCOS ";
const OEM_TABLE: [u8; 8] = *b"LUCOSVMM";
/// Default addresses of the interrupt controllers (Intel SDM vol. 3A, 11.4.1; 82093AA datasheet, 3.0).
const LOCAL_APIC: u32 = 0xfee0_0000;
const IO_APIC: u32 = 0xfec0_0000;
/// FADT boot flag: do not look for a CMOS clock (ACPI 6.5, table 5.10). The other bits stay clear: no 8042
/// keyboard to probe for, no legacy devices.
const NO_CMOS_RTC: u16 = 1 << 5;
/// FADT boot flag: no VGA.
const NO_VGA: u16 = 1 << 2;
/// MADT interrupt source override flags: active high, level triggered (ACPI 6.5, table 5.26).
const LEVEL_HIGH: u16 = 0b1101;

/// Writes all tables and returns the address of the RSDP.
pub(super) fn write_tables(memory: &GuestMemory, cpus: u8) -> Result<u64, GuestMemoryError> {
    // The RSDP (36 bytes) stands first, where a scan finds it; the other tables follow, 64-byte aligned.
    let mut writer = TableWriter { memory, next: ACPI_TABLES + 64 };
    let dsdt = writer.write(&dsdt())?;
    let facs = writer.write(&FACS::new())?;
    let fadt = writer.write(&fadt(dsdt, facs).finalize())?;
    let madt = writer.write(&madt(cpus))?;
    let mut xsdt = XSDT::new(OEM, OEM_TABLE, 1);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = writer.write(&xsdt)?;
    writer.next = ACPI_TABLES;
    writer.write(&Rsdp::new(OEM, xsdt))
}

struct TableWriter<'a> {
    memory: &'a GuestMemory,
    next: u64,
}

impl TableWriter<'_> {
    fn write(&mut self, table: &dyn Aml) -> Result<u64, GuestMemoryError> {
        let mut bytes = Vec::new();
        table.to_aml_bytes(&mut bytes);
        let at = self.next;
        self.next = (at + bytes.len() as u64).next_multiple_of(64);
        // 254 processors take 2 KiB of the 128 KiB.
        assert!(self.next <= HIGH_RAM, "ACPI tables end at {:#x}", self.next);
        self.memory.write_slice(&bytes, GuestAddress(at))?;
        Ok(at)
    }
}

fn port(address: u16, bits: u8) -> GAS {
    let size = match bits {
        8 => AccessSize::ByteAccess,
        16 => AccessSize::WordAccess,
        _ => AccessSize::DwordAccess,
    };
    GAS::new(GasSpace::SystemIo, bits, 0, size, u64::from(address))
}

fn fadt(dsdt: u64, facs: u64) -> FADTBuilder {
    let mut fadt = FADTBuilder::new(OEM, OEM_TABLE, 1)
        .dsdt_64(dsdt)
        .firmware_ctrl_64(facs)
        .flag(Flags::Wbinvd)
        .flag(Flags::ProcC1)
        .flag(Flags::SlpButton)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Headless);
    // No SMI command port: ACPI mode is on from the start (ACPI 6.5, 4.8.3.2.1).
    fadt.sci_int = u16::from(SCI).into();
    fadt.pm1a_evt_blk = u32::from(PM1_EVENT).into();
    fadt.pm1_evt_len = 4;
    fadt.pm1a_cnt_blk = u32::from(PM1_CONTROL).into();
    fadt.pm1_cnt_len = 2;
    fadt.x_pm1a_evt_blk = port(PM1_EVENT, 32);
    fadt.x_pm1a_cnt_blk = port(PM1_CONTROL, 16);
    fadt.reset_reg = port(RESET_REGISTER, 8);
    fadt.reset_value = RESET_VALUE;
    fadt.iapc_boot_arch = (NO_CMOS_RTC | NO_VGA).into();
    // C2 and C3 do not exist: latencies above the limits (ACPI 6.5, table 5.9).
    fadt.p_lvl2_lat = 101.into();
    fadt.p_lvl3_lat = 1001.into();
    fadt
}

fn madt(cpus: u8) -> MADT {
    let mut madt = MADT::new(OEM, OEM_TABLE, 1, LocalInterruptController::Address(LOCAL_APIC));
    for id in 0..cpus {
        madt.add_structure(ProcessorLocalApic::new(id, id, EnabledStatus::Enabled));
    }
    // The I/O APIC's ID follows the processors'. KVM routes GSI n to its pin n, so the timer needs no override.
    madt.add_structure(IoApic::new(cpus, IO_APIC, 0));
    madt.add_structure(SourceOverride::new(SCI));
    madt
}

/// Interrupt Source Override (ACPI 6.5, 5.2.12.5); `acpi_tables` has none.
#[derive(Clone, zerocopy::IntoBytes, zerocopy::Immutable)]
#[repr(C, packed)]
struct SourceOverride {
    kind: u8,
    len: u8,
    bus: u8,
    source: u8,
    gsi: [u8; 4],
    flags: [u8; 2],
}

impl SourceOverride {
    fn new(irq: u8) -> Self {
        Self {
            kind: 2,
            len: 10,
            bus: 0,
            source: irq,
            gsi: u32::from(irq).to_le_bytes(),
            flags: LEVEL_HIGH.to_le_bytes(),
        }
    }
}

impl Aml for SourceOverride {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(zerocopy::IntoBytes::as_bytes(self));
    }
}

fn dsdt() -> Sdt {
    let mut body = Vec::new();
    let sleep: u8 = SLEEP_TYPE_S5;
    aml::Name::new("_S5_".into(), &aml::Package::new(vec![&sleep, &aml::ZERO, &aml::ZERO, &aml::ZERO]))
        .to_aml_bytes(&mut body);
    aml::Scope::new("_SB_".into(), vec![&PciRoot, &SerialNode(COM1, 1), &SerialNode(COM2, 2)])
        .to_aml_bytes(&mut body);
    let mut dsdt = Sdt::new(*b"DSDT", 36, 2, OEM, OEM_TABLE, 1);
    dsdt.append_slice(&body);
    dsdt
}

/// The PCI host bridge: bus 0, configuration mechanism #1, and the window for BARs.
struct PciRoot;

impl Aml for PciRoot {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let window = |address: u64| u32::try_from(address).expect("the window lies below 4 GiB");
        aml::Device::new(
            "PCI0".into(),
            vec![
                &aml::Name::new("_HID".into(), &aml::EISAName::new("PNP0A03")),
                &aml::Name::new("_ADR".into(), &aml::ZERO),
                &aml::Name::new("_BBN".into(), &aml::ZERO),
                &aml::Name::new("_UID".into(), &aml::ZERO),
                &aml::Name::new(
                    "_CRS".into(),
                    &aml::ResourceTemplate::new(vec![
                        &aml::AddressSpace::new_bus_number(0x0_u16, 0x0_u16),
                        &aml::IO::new(0xcf8, 0xcf8, 1, 8),
                        &aml::AddressSpace::new_memory(
                            aml::AddressSpaceCacheable::NotCacheable,
                            true,
                            window(MMIO_WINDOW.start),
                            window(MMIO_WINDOW.end - 1),
                            None,
                        ),
                    ]),
                ),
            ],
        )
        .to_aml_bytes(sink);
    }
}

/// A 16550 UART.
struct SerialNode(SerialPort, u8);

impl Aml for SerialNode {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let Self(port, number) = self;
        aml::Device::new(
            format!("COM{number}").as_str().into(),
            vec![
                &aml::Name::new("_HID".into(), &aml::EISAName::new("PNP0501")),
                &aml::Name::new("_UID".into(), number),
                &aml::Name::new(
                    "_CRS".into(),
                    &aml::ResourceTemplate::new(vec![
                        &aml::Interrupt::new(true, true, false, false, u32::from(port.irq)),
                        &aml::IO::new(port.base, port.base, 1, 8),
                    ]),
                ),
            ],
        )
        .to_aml_bytes(sink);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::GuestRam;

    fn table(memory: &GuestMemory, at: u64) -> Vec<u8> {
        let len: u32 = memory.read_obj(GuestAddress(at + 4)).unwrap();
        let mut bytes = vec![0; len as usize];
        memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        bytes
    }

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    #[test]
    fn the_tables_are_reachable_from_the_rsdp_and_sum_to_zero() {
        let ram = GuestRam::new(4 << 20).unwrap();
        let rsdp = write_tables(ram.memory(), 254).unwrap();
        let mut bytes = [0; 36];
        ram.memory().read_slice(&mut bytes, GuestAddress(rsdp)).unwrap();
        assert_eq!(&bytes[..8], b"RSD PTR ");
        assert_eq!((sum(&bytes[..20]), sum(&bytes)), (0, 0));
        let xsdt = table(ram.memory(), u64::from_le_bytes(bytes[24..32].try_into().unwrap()));
        assert_eq!((&xsdt[..4], sum(&xsdt)), (&b"XSDT"[..], 0));
        let tables: Vec<Vec<u8>> = xsdt[36..]
            .chunks_exact(8)
            .map(|address| table(ram.memory(), u64::from_le_bytes(address.try_into().unwrap())))
            .collect();
        let names: Vec<&[u8]> = tables.iter().map(|table| &table[..4]).collect();
        assert_eq!(names, [b"FACP", b"APIC"]);
        assert!(tables.iter().all(|table| sum(table) == 0));
        let processors = {
            let mut rest = &tables[1][44..];
            let mut count = 0;
            while let [kind, len, ..] = *rest {
                count += usize::from(kind == 0);
                rest = &rest[usize::from(len)..];
            }
            count
        };
        assert_eq!(processors, 254);
        let dsdt = table(ram.memory(), u64::from_le_bytes(tables[0][140..148].try_into().unwrap()));
        assert_eq!((&dsdt[..4], sum(&dsdt)), (&b"DSDT"[..], 0));
    }
}
