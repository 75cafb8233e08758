//! fio in the guest: what it is asked, and what it answers.

use anyhow::{Context, Result, ensure};

/// One pattern of access to the raw disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Job {
    /// In figures.
    pub(crate) name: &'static str,
    rw: &'static str,
    block: &'static str,
    pub(crate) depth: u8,
    /// Whether operations or bytes are counted.
    pub(crate) counts: Counts,
}

/// What a job's result is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Counts {
    /// Operations per second.
    Operations,
    /// MiB per second.
    Bytes,
}

impl Counts {
    pub(crate) fn unit(self) -> &'static str {
        match self {
            Self::Operations => "IOPS",
            Self::Bytes => "MiB/s",
        }
    }
}

const fn job(name: &'static str, rw: &'static str, block: &'static str, depth: u8, counts: Counts) -> Job {
    Job { name, rw, block, depth, counts }
}

/// Reads before writes, so that the first write does not find its blocks in the making.
pub(crate) const JOBS: [Job; 8] = [
    job("read_4k_qd1", "randread", "4k", 1, Counts::Operations),
    job("read_4k_qd16", "randread", "4k", 16, Counts::Operations),
    job("write_4k_qd1", "randwrite", "4k", 1, Counts::Operations),
    job("write_4k_qd16", "randwrite", "4k", 16, Counts::Operations),
    job("read_1m_qd1", "read", "1m", 1, Counts::Bytes),
    job("read_1m_qd16", "read", "1m", 16, Counts::Bytes),
    job("write_1m_qd1", "write", "1m", 1, Counts::Bytes),
    job("write_1m_qd16", "write", "1m", 16, Counts::Bytes),
];

impl Job {
    /// The command line in the guest; one line of semicolons comes out, as a serial console is slow.
    pub(crate) fn command(self, disk: &str, seconds: u16) -> String {
        let engine = if self.depth == 1 { "psync" } else { "libaio" };
        format!(
            "fio --minimal --name={} --filename={disk} --rw={} --bs={} --iodepth={} --ioengine={engine} --direct=1 \
             --thread --time_based --runtime={seconds} --ramp_time=1",
            self.name, self.rw, self.block, self.depth
        )
    }

    /// Reads the result out of fio's line (fio(1), "terse output", version 3).
    pub(crate) fn result(self, line: &str) -> Result<f64> {
        // A line of the kernel's may stand in front of it.
        let start = line.find("3;fio-").context("this is no terse output of fio")?;
        let fields: Vec<&str> = line[start..].split(';').collect();
        ensure!(fields.get(2) == Some(&self.name), "fio tells of {:?}, not of {}", fields.get(2), self.name);
        ensure!(fields.get(4) == Some(&"0"), "fio failed with error {:?}", fields.get(4));
        // Reads from field 5 on and writes from field 46 on: KiB in all, KiB/s, operations/s, runtime.
        let from = if self.rw.ends_with("read") { 5 } else { 46 };
        let (field, scale) = match self.counts {
            Counts::Operations => (from + 2, 1.0),
            Counts::Bytes => (from + 1, 1024.0),
        };
        let text = fields.get(field).context("fio's line is too short")?;
        let value: f64 = text.parse().with_context(|| format!("fio's field {field} is `{text}`"))?;
        Ok(value / scale)
    }
}

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "these numbers are exact")]
mod tests {
    use super::*;

    /// A line of fio 3.33 with the fields that nobody reads replaced by zeros.
    fn line(name: &str, error: u8) -> String {
        let mut fields = vec!["0".to_owned(); 130];
        for (at, text) in
            [(0, "3"), (1, "fio-3.33"), (2, name), (6, "2048"), (7, "512"), (47, "4096"), (48, "9")]
        {
            fields[at] = text.to_owned();
        }
        fields[4] = error.to_string();
        fields.join(";")
    }

    #[test]
    fn the_field_of_the_job_is_read() {
        let job = |name| *JOBS.iter().find(|job| job.name == name).unwrap();
        assert_eq!(job("read_4k_qd1").result(&line("read_4k_qd1", 0)).unwrap(), 512.0);
        assert_eq!(job("read_1m_qd1").result(&line("read_1m_qd1", 0)).unwrap(), 2.0);
        assert_eq!(job("write_4k_qd16").result(&line("write_4k_qd16", 0)).unwrap(), 9.0);
        assert_eq!(job("write_1m_qd1").result(&format!("[ 1.0] {}", line("write_1m_qd1", 0))).unwrap(), 4.0);
        assert!(job("read_4k_qd1").result(&line("read_1m_qd1", 0)).is_err());
        assert!(job("read_4k_qd1").result(&line("read_4k_qd1", 5)).is_err());
        assert!(job("read_4k_qd1").result("3;fio-3.33;read_4k_qd1").is_err());
    }
}
