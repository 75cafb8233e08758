//! The network device on a real tap: what the host's sockets send arrives in the guest, and back.

use std::net::{Ipv4Addr, UdpSocket};

use super::tap::TestTap;
use super::*;
use crate::device::virtio::{NetDevice, net};

const CSUM: u64 = 1 << 0;
const GUEST_CSUM: u64 = 1 << 1;
const GUEST_TSO4: u64 = 1 << 7;
const HOST_TSO4: u64 = 1 << 11;
const MRG_RXBUF: u64 = 1 << 15;

/// Lengths of the headers of virtio, Ethernet, IPv4 and UDP.
const VIRTIO: usize = 12;
const ETHERNET: usize = 14;
const IP: usize = 20;
const UDP: usize = 8;
const PAYLOAD: usize = VIRTIO + ETHERNET + IP + UDP;

fn bench(tap: &TestTap) -> Bench<NetDevice> {
    let bench = Bench::new(|memory, msi| net(tap.open(), tap.mac, memory, msi).unwrap());
    // Attached, the tap has a carrier; until the host notices, it drops what is sent.
    eventually("the link", || tap.is_up());
    bench
}

/// The ones' complement sum (RFC 1071), not complemented.
fn sum(bytes: &[u8]) -> u16 {
    let mut sum = 0_u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).unwrap()
}

/// A UDP datagram from the guest to the host, with a virtio header that leaves the checksum to the host when
/// `partial`.
fn datagram(tap: &TestTap, port: u16, payload: &[u8], partial: bool) -> Vec<u8> {
    let udp_len = u16::try_from(UDP + payload.len()).unwrap();
    let mut ip = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0];
    ip[2..4].copy_from_slice(&(udp_len + 20).to_be_bytes());
    ip.extend_from_slice(&tap.guest.octets());
    ip.extend_from_slice(&tap.host.octets());
    let check = !sum(&ip);
    ip[10..12].copy_from_slice(&check.to_be_bytes());
    let mut pseudo = ip[12..20].to_vec();
    pseudo.extend_from_slice(&[0, 17]);
    pseudo.extend_from_slice(&udp_len.to_be_bytes());

    let mut frame = vec![0; VIRTIO];
    if partial {
        // VIRTIO_NET_HDR_F_NEEDS_CSUM, csum_start, csum_offset (5.1.6).
        frame[0] = 1;
        frame[6..8].copy_from_slice(&u16::try_from(ETHERNET + IP).unwrap().to_le_bytes());
        frame[8..10].copy_from_slice(&6_u16.to_le_bytes());
    }
    frame.extend_from_slice(&tap.host_mac());
    frame.extend_from_slice(&tap.mac.bytes());
    frame.extend_from_slice(&[8, 0]);
    frame.extend_from_slice(&ip);
    frame.extend_from_slice(&4000_u16.to_be_bytes());
    frame.extend_from_slice(&port.to_be_bytes());
    frame.extend_from_slice(&udp_len.to_be_bytes());
    frame.extend_from_slice(&if partial { sum(&pseudo) } else { 0 }.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

fn send(bench: &Bench<NetDevice>, transmit: &mut Queue, index: u16, frame: &[u8]) {
    let at = 0x10_0000 + u64::from(index) * 0x1000;
    bench.memory().write_slice(frame, GuestAddress(at)).unwrap();
    bench.post(transmit, index, (at, u32::try_from(frame.len()).unwrap()), 0);
}

fn host_receives(socket: &UdpSocket, guest: Ipv4Addr, payload: &[u8]) {
    let mut data = [0; 4096];
    let (len, from) = socket.recv_from(&mut data).unwrap();
    assert_eq!((&data[..len], from.ip()), (payload, guest.into()));
}

#[test]
fn configuration_and_dependent_features() {
    let Some(tap) = TestTap::new() else { return };
    let bench = bench(&tap);
    assert_eq!(bench.read_config(0x00), 0x1041_1af4);
    assert_eq!(bench.read::<6>(DEVICE), tap.mac.bytes());
    bench.write(DEVICE, &[0; 6]);
    assert_eq!(bench.read::<6>(DEVICE), tap.mac.bytes());
    assert_eq!(bench.read::<2>(COMMON + 0x12), [2, 0]);
    assert!(!bench.negotiate(VERSION_1 | HOST_TSO4));
    assert!(!bench.negotiate(VERSION_1 | GUEST_TSO4 | CSUM));
    assert!(bench.negotiate(VERSION_1 | HOST_TSO4 | CSUM | GUEST_TSO4 | GUEST_CSUM));
    assert!(bench.negotiate(bench.offered()));
}

#[test]
fn the_guest_sends() {
    let Some(tap) = TestTap::new() else { return };
    let bench = bench(&tap);
    let socket = tap.socket();
    let port = socket.local_addr().unwrap().port();
    for (features, partial) in [(VERSION_1, false), (bench.offered(), true)] {
        let mut queues = bench.start(features, &[64, 64]);
        for index in 0..32 {
            let payload = vec![index; 100 + usize::from(index)];
            let frame = datagram(&tap, port, &payload, partial);
            send(&bench, &mut queues[1], u16::from(index), &frame);
            assert_eq!(bench.wait_used(&mut queues[1]), (u32::from(index), 0));
            host_receives(&socket, tap.guest, &payload);
        }
    }
    // The worker counts a frame after the host has it.
    eventually("the last frame to be counted", || bench.device.counters().snapshot().tx_packets == 64);
    let counters = bench.device.counters().snapshot();
    assert_eq!((counters.tx_packets, counters.tx_dropped), (64, 0));
    let bytes: u64 = (0..32).map(|index| 2 * (100 + index + 42)).sum();
    assert_eq!(counters.tx_bytes, bytes);
}

/// A frame of 8 KiB that the host has to cut up, from buffers in several places: the tap takes it, so the host
/// found the header consistent.
#[test]
fn the_guest_sends_a_frame_to_be_segmented() {
    let Some(tap) = TestTap::new() else { return };
    let bench = bench(&tap);
    let mut queues = bench.start(bench.offered(), &[64, 64]);
    let mut frame = datagram(&tap, 9, &[0; 8000], true);
    // TCP over IPv4: GSO_TCPV4, hdr_len, gso_size, and the checksum's place in the TCP header.
    frame[1] = 1;
    frame[2..4].copy_from_slice(&54_u16.to_le_bytes());
    frame[4..6].copy_from_slice(&1448_u16.to_le_bytes());
    frame[8..10].copy_from_slice(&16_u16.to_le_bytes());
    let ip = VIRTIO + ETHERNET;
    frame[ip + 9] = 6;
    frame[ip + 10..ip + 12].fill(0);
    let check = !sum(&frame[ip..ip + IP]);
    frame[ip + 10..ip + 12].copy_from_slice(&check.to_be_bytes());
    // Data offset of five double words.
    frame[ip + IP + 12] = 0x50;
    bench.memory().write_slice(&frame, GuestAddress(0x10_0000)).unwrap();
    let table = queues[1].descriptors();
    let len = u32::try_from(frame.len()).unwrap();
    bench.describe(table, 0, (0x10_0000, 12), NEXT, 1);
    bench.describe(table, 1, (0x10_000c, 4000), NEXT, 2);
    bench.describe(table, 2, (0x10_000c + 4000, len - 4012), 0, 0);
    bench.offer(&mut queues[1], 0);
    bench.notify(&queues[1]);
    assert_eq!(bench.wait_used(&mut queues[1]), (0, 0));
    eventually("the frame in the tap", || bench.device.counters().snapshot().tx_packets == 1);
    assert_eq!(bench.device.counters().snapshot().tx_bytes, u64::from(len - 12));
}

#[test]
fn the_guest_receives() {
    let Some(tap) = TestTap::new() else { return };
    let bench = bench(&tap);
    let socket = tap.socket();
    for (features, flags) in [(VERSION_1, 0), (VERSION_1 | EVENT_IDX | GUEST_CSUM, 1)] {
        let mut queues = bench.start(features, &[64, 64]);
        for index in 0..32_u16 {
            let at = 0x10_0000 + u64::from(index) * 0x1000;
            bench.memory().write_slice(&[0xee; 0x1000], GuestAddress(at)).unwrap();
            bench.post(&mut queues[0], index, (at, 2048), WRITE);
        }
        for index in 0..32_u8 {
            let payload = vec![index; 200 + usize::from(index)];
            socket.send_to(&payload, (tap.guest, 9)).unwrap();
            let (head, len) = bench.wait_used(&mut queues[0]);
            assert_eq!(head, u32::from(index));
            assert_eq!(len as usize, PAYLOAD + payload.len());
            let bytes = bench.bytes(0x10_0000 + u64::from(index) * 0x1000, 0x1000);
            // The first one may have been sent before the worker told the tap about the new driver.
            assert!(bytes[0] & 1 == flags || index == 0);
            assert_eq!(bytes[10..18], [[1, 0].as_slice(), &tap.mac.bytes()].concat());
            assert_eq!(bytes[PAYLOAD..len as usize], payload);
            assert!(bytes[len as usize..].iter().all(|&byte| byte == 0xee));
        }
        eventually("an interrupt", || bench.sent.count(1) > 0);
    }
    assert_eq!(bench.device.counters().snapshot().rx_packets, 64);
}

#[test]
fn a_frame_over_several_buffers_appears_as_a_whole() {
    let Some(tap) = TestTap::new() else { return };
    let bench = bench(&tap);
    let socket = tap.socket();
    let mut queues = bench.start(VERSION_1 | MRG_RXBUF | EVENT_IDX, &[64, 64]);
    let payload: Vec<u8> = (0..=255).cycle().take(1000).collect();
    socket.send_to(&payload, (tap.guest, 9)).unwrap();
    // 1054 bytes in buffers of 128: nine of them. The device must use none before the ninth is there.
    for index in 0..12 {
        if index == 8 {
            thread::sleep(Duration::from_millis(20));
            assert_eq!(bench.used_index(&queues[0]), 0);
        }
        bench.post(&mut queues[0], index, (0x10_0000 + u64::from(index) * 128, 128), WRITE);
    }
    for index in 0..9 {
        let len = if index == 8 { 1054 - 8 * 128 } else { 128 };
        assert_eq!(bench.wait_used(&mut queues[0]), (index, len));
    }
    let bytes = bench.bytes(0x10_0000, 1054);
    assert_eq!(bytes[10..12], [9, 0]);
    assert_eq!(bytes[PAYLOAD..], payload);
    assert_eq!(bench.used_index(&queues[0]), 9);
    // The next one goes into what is left.
    socket.send_to(&[7; 10], (tap.guest, 9)).unwrap();
    assert_eq!(bench.wait_used(&mut queues[0]), (9, 64));
    assert_eq!(bench.bytes(0x10_0000 + 9 * 128 + 10, 2), [1, 0]);
}

#[test]
fn frames_wait_for_buffers_and_too_short_buffers_for_frames() {
    let Some(tap) = TestTap::new() else { return };
    let bench = bench(&tap);
    let socket = tap.socket();
    let mut queues = bench.start(VERSION_1 | EVENT_IDX, &[8, 8]);
    for index in 0..4_u8 {
        socket.send_to(&[index; 64], (tap.guest, 9)).unwrap();
    }
    thread::sleep(Duration::from_millis(20));
    for index in 0..4_u8 {
        bench.post(&mut queues[0], u16::from(index), (0x10_0000, 1526), WRITE);
        assert_eq!(bench.wait_used(&mut queues[0]), (u32::from(index), 118));
        assert_eq!(bench.bytes(0x10_0000 + PAYLOAD as u64, 64), [index; 64]);
    }
    // Without mergeable buffers, a frame that its buffer cannot hold is dropped and the buffer kept.
    bench.post(&mut queues[0], 4, (0x10_0000, 100), WRITE);
    socket.send_to(&[9; 64], (tap.guest, 9)).unwrap();
    eventually("a dropped frame", || bench.device.counters().snapshot().rx_dropped == 1);
    socket.send_to(&[5; 30], (tap.guest, 9)).unwrap();
    assert_eq!(bench.wait_used(&mut queues[0]), (4, 84));
    assert_eq!(bench.device.counters().snapshot().rx_packets, 5);
}

#[test]
fn frames_that_are_none_are_dropped() {
    let Some(tap) = TestTap::new() else { return };
    let bench = bench(&tap);
    let mut queues = bench.start(VERSION_1, &[64, 64]);
    let transmit = &mut queues[1];
    // Nothing, only a header, a chain longer than any frame, only a buffer to write to.
    for (index, (len, flags)) in (0..).zip([(0, 0), (12, 0), (0x1_1000, 0), (100, WRITE)]) {
        bench.post(transmit, index, (0x10_0000, len), flags);
        assert_eq!(bench.wait_used(transmit), (u32::from(index), 0));
    }
    // A header full of nonsense: the host refuses it.
    bench.memory().write_slice(&[0xff; 100], GuestAddress(0x10_0000)).unwrap();
    bench.post(transmit, 4, (0x10_0000, 100), 0);
    eventually("five drops", || bench.device.counters().snapshot().tx_dropped == 5);
    assert_eq!(bench.status() & NEEDS_RESET, 0);
    assert_eq!(bench.device.counters().snapshot().tx_packets, 0);
}

#[test]
fn a_closed_gate_stops_received_frames() {
    let Some(tap) = TestTap::new() else { return };
    let bench = bench(&tap);
    let socket = tap.socket();
    let mut queues = bench.start(VERSION_1, &[8, 8]);
    bench.post(&mut queues[0], 0, (0x10_0000, 1526), WRITE);
    eventually("the device at rest", || bench.used_index(&queues[0]) == 0);
    bench.gate.close().unwrap();
    let before = bench.bytes(0, usize::try_from(RAM).unwrap());
    for _ in 0..8 {
        socket.send_to(&[1; 64], (tap.guest, 9)).unwrap();
    }
    thread::sleep(Duration::from_millis(50));
    assert!(bench.bytes(0, before.len()) == before, "guest memory changed behind a closed gate");
    assert_eq!(bench.sent.count(1), 0);
    bench.gate.open();
    assert_eq!(bench.wait_used(&mut queues[0]), (0, 118));
}

#[test]
fn no_frame_arrives_after_a_reset_in_mid_traffic() {
    let Some(tap) = TestTap::new() else { return };
    let bench = bench(&tap);
    let socket = tap.socket();
    let port = socket.local_addr().unwrap().port();
    let frame = datagram(&tap, port, &[1; 500], false);
    let ram = usize::try_from(RAM).unwrap();
    for round in 0..60_u64 {
        let mut queues = bench.start(VERSION_1 | EVENT_IDX, &[64, 64]);
        for index in 0..32 {
            bench.describe(queues[0].descriptors(), index, (0x8_0000, 2048), WRITE, 0);
            bench.offer(&mut queues[0], index);
            send(&bench, &mut queues[1], index, &frame);
        }
        bench.notify(&queues[0]);
        for _ in 0..16 {
            socket.send_to(&[2; 300], (tap.guest, 9)).unwrap();
        }
        thread::sleep(Duration::from_micros(round * 20));
        bench.reset();
        let before = bench.bytes(0, ram);
        socket.send_to(&[3; 300], (tap.guest, 9)).unwrap();
        thread::sleep(Duration::from_millis(1));
        assert!(bench.bytes(0, ram) == before, "round {round}");
    }
    assert!(bench.device.counters().snapshot().tx_packets > 0);
}

#[test]
fn a_tap_that_goes_away_takes_only_the_network_with_it() {
    let Some(tap) = TestTap::new() else { return };
    let bench = bench(&tap);
    let mut queues = bench.start(VERSION_1, &[8, 8]);
    bench.post(&mut queues[0], 0, (0x10_0000, 1526), WRITE);
    let frame = datagram(&tap, 9, &[0; 64], false);
    tap.remove();
    send(&bench, &mut queues[1], 1, &frame);
    assert_eq!(bench.wait_used(&mut queues[1]), (1, 0));
    eventually("a dropped frame", || bench.device.counters().snapshot().tx_dropped == 1);
    bench.reset();
    bench.device.shutdown();
}

#[test]
fn the_tap_is_free_after_a_shutdown() {
    let Some(tap) = TestTap::new() else { return };
    let bench = bench(&tap);
    bench.start(VERSION_1, &[8, 8]);
    bench.device.shutdown();
    tap.is_freed();
}
