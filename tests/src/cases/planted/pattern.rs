//! What the frames of a stack should be, written as `inner < .. < outer`.

/// Whether the functions of `frames`, each as the kernel's traces have it, are those of `pattern`, from the innermost
/// out: names with `|` between alternatives, and `..` for any number of frames, none included. Suffixes that a compiler
/// gives to its copies of a function do not count. Code that a probe has made for a function stands for that function.
pub(super) fn fits(pattern: &str, frames: &[&str]) -> bool {
    let pattern: Vec<&str> = pattern.split(" < ").collect();
    let names: Vec<&str> = frames.iter().map(|frame| function(frame)).collect();
    fits_from(&pattern, &names)
}

fn fits_from(pattern: &[&str], names: &[&str]) -> bool {
    match (pattern.split_first(), names.split_first()) {
        (None, rest) => rest.is_none(),
        (Some((&"..", more)), None) => fits_from(more, names),
        (Some((&"..", more)), Some((_, behind))) => fits_from(more, names) || fits_from(pattern, behind),
        (Some(_), None) => false,
        (Some((wanted, more)), Some((name, behind))) => {
            wanted.split('|').any(|wanted| wanted == *name) && fits_from(more, behind)
        }
    }
}

/// `f` of `f.constprop.0+0x12/0x34 [module]`, and of `0x1234 [kprobe at f+0x12/0x34 [module]]`.
fn function(frame: &str) -> &str {
    let place = frame.split_once("[kprobe at ").map_or(frame, |(_, place)| place);
    place.split(['+', '.']).next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_frame_counts() {
        let frames = ["a.isra.0+0x1/0x2 [m]", "0x7 [kprobe at b+0x3/0x4 [m]]", "c+0x5/0x6"];
        for good in ["a < b < c", "a < ..", "a < .. < c", "a < x|b < .. < c", ".. < c"] {
            assert!(fits(good, &frames), "{good}");
        }
        for bad in ["a < b", "b < c", "a < c", "a < b < c < d", ".. < b", "a < .. < b < a"] {
            assert!(!fits(bad, &frames), "{bad}");
        }
    }
}
