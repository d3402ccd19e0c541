//! Every kernel that one picture of Stable Diffusion 1.5 needs, timed alone, against the chip's ceilings.
//!
//! `cargo bench --bench kernels [FILTER] [--csv FILE] [--against FILE] [--library FILE]`
//!
//! `us` is the median of one execution among several in a row, its inputs in L2 as far as they fit;
//! `cold` is that of a single one after L2 was flushed, its launch included. The floor is the time that
//! the bytes take at the speed of a large device copy, or the operations at that of an 8192^3 product,
//! whichever is longer. `x` is how many times as fast as in the earlier file, `lib` as the best library kernel in
//! a file of tools/library_kernels.py. Records belong in `benches/record/<gpu>/<date>.csv`.

#[cfg(sdrt_cuda)]
#[path = "../tests/common/mod.rs"]
mod common;

#[cfg(sdrt_cuda)]
fn main() -> anyhow::Result<()> {
    measure::main()
}

#[cfg(not(sdrt_cuda))]
fn main() {
    println!("skipped: built without CUDA kernels: no GPU here, or no nvcc");
}

#[cfg(sdrt_cuda)]
mod measure {
    use std::collections::{BTreeMap, HashMap};
    use std::fs;
    use std::path::{Path, PathBuf};

    use anyhow::{Context, bail};
    use clap::Parser;
    use cudarc::driver::result::memcpy_dtod_async;
    use sdrt::ceiling::Ceiling;
    use sdrt::gpu::device::device_count;
    use sdrt::gpu::timer::Timer;
    use sdrt::ops::count::Count;
    use sdrt::ops::cuda::Cuda;
    use sdrt::ops::{Backend, Call, DType, Ops, Region, Tensor};
    use sdrt::pipeline::{Counted, KnownShapes, Request};
    use sdrt::roofline;
    use sdrt::sampler::Sampler;

    use crate::common::placed::{Placed, distinct, label};
    use crate::common::reserve_arena;

    #[derive(Parser)]
    struct Arguments {
        /// Only rows that contain this, such as `attention`, `unet_step_2` or `d=40`.
        filter: Option<String>,
        /// Writes the rows to a file.
        #[arg(long)]
        csv: Option<PathBuf>,
        /// Compares with the rows of such a file.
        #[arg(long)]
        against: Option<PathBuf>,
        /// Compares with the best library kernels, in a file that tools/library_kernels.py wrote.
        #[arg(long)]
        library: Option<PathBuf>,
        /// Cargo says so.
        #[arg(long, hide = true)]
        bench: bool,
    }

    /// Medians are of so many samples.
    const SAMPLES: usize = 21;
    /// A sample of fast kernels is of several in a row: about so long, but not more than so many.
    const SAMPLE_US: f64 = 200.0;
    const MAX_REPEATS: usize = 20;
    /// More than any L2.
    const FLUSH_BYTES: usize = 512 << 20;
    /// Copies of that, 2 ms on an H200: they keep the device busy until the host has launched a whole sample, for which
    /// a slow one takes 60 us a kernel.
    const FLUSHES: usize = 8;

    struct Row {
        stage: &'static str,
        call: Call,
        count: usize,
        us: f64,
        cold_us: f64,
    }

    fn floor_us(ceiling: &Ceiling, call: &Call) -> f64 {
        1e3 * roofline::floor_ms(ceiling, call)
    }

    struct Bench {
        timer: Timer,
        from: Tensor,
        to: Tensor,
        _region: Region,
        cuda: Cuda,
    }

    impl Bench {
        fn open() -> anyhow::Result<Self> {
            let mut cuda = Cuda::open(0, DType::F16)?;
            let region = reserve_arena(&mut cuda, 2 * FLUSH_BYTES + (2 << 30));
            let [from, to] = [(); 2].map(|()| cuda.arena().alloc([1, 1, 1, FLUSH_BYTES], DType::U8));
            Ok(Bench { timer: Timer::new(cuda.gpu())?, from, to, _region: region, cuda })
        }

        /// Puts other data into L2.
        fn flush(&self) -> anyhow::Result<()> {
            let stream = self.cuda.gpu().stream.cu_stream();
            // SAFETY: both tensors have FLUSH_BYTES.
            let copy =
                || unsafe { memcpy_dtod_async(self.to.address, self.from.address, FLUSH_BYTES, stream) };
            (0..FLUSHES).try_for_each(|_| copy()).context("copying on the device")
        }

        /// Microseconds of one of `repeats` in a row, after a flush and `warm_ups`.
        fn sample(&mut self, call: &Call, warm_ups: usize, repeats: usize) -> anyhow::Result<f64> {
            self.flush()?;
            (0..warm_ups).for_each(|_| self.cuda.issue(*call));
            self.timer.start(self.cuda.gpu())?;
            (0..repeats).for_each(|_| self.cuda.issue(*call));
            Ok(1e3 * self.timer.stop(self.cuda.gpu())? / repeats as f64)
        }

        /// Warm and cold.
        fn time(&mut self, template: &Call) -> anyhow::Result<(f64, f64)> {
            let mark = self.cuda.arena().mark();
            let call = Placed::new(&mut self.cuda, template, 0).call;
            // Loads code and chooses algorithms.
            self.cuda.run(&mut |ops| ops.issue(call))?;
            let repeats = (SAMPLE_US / self.sample(&call, 1, 1)?).clamp(1.0, MAX_REPEATS as f64) as usize;
            let warm = median(|| self.sample(&call, 2, repeats))?;
            let cold = median(|| self.sample(&call, 0, 1))?;
            self.cuda.run(&mut |_| ())?;
            self.cuda.arena().release(mark);
            Ok((warm, cold))
        }
    }

    fn median(mut sample: impl FnMut() -> anyhow::Result<f64>) -> anyhow::Result<f64> {
        let mut samples = (0..SAMPLES).map(|_| sample()).collect::<anyhow::Result<Vec<f64>>>()?;
        samples.sort_by(f64::total_cmp);
        Ok(samples[SAMPLES / 2])
    }

    /// The stages of 512x512 pictures with guidance; a U-Net step by its batch.
    fn stages() -> [(&'static str, Count); 4] {
        let model = KnownShapes::Sd15.describe();
        let count = |images| {
            let request = Request { images, ..Request::defaults(&model, Sampler::Ddim) };
            Counted::new(&model, &request, DType::F16).expect("a request")
        };
        let (one, four) = (count(1), count(4));
        [
            ("text_encode", one.encode),
            ("unet_step_2", one.denoise),
            ("unet_step_8", four.denoise),
            ("vae_decode", one.decode),
        ]
    }

    pub fn main() -> anyhow::Result<()> {
        let arguments = Arguments::parse();
        let read =
            |file: &Option<PathBuf>| file.as_deref().map(read_csv).transpose().map(Option::unwrap_or_default);
        let (against, library) = (read(&arguments.against)?, read(&arguments.library)?);
        if device_count() == 0 {
            println!("skipped: no CUDA device");
            return Ok(());
        }
        let mut bench = Bench::open()?;
        let ceiling = bench.cuda.measure_ceiling()?.context("a card has a ceiling")?;
        println!("{}", roofline::heading(&bench.cuda.describe(), Some(ceiling)));

        let filter = arguments.filter.unwrap_or_default();
        let mut rows = Vec::new();
        for (stage, program) in stages() {
            let before = rows.len();
            for (call, count) in distinct(&program.calls) {
                if !format!("{stage} {}", label(&call)).contains(&filter) {
                    continue;
                }
                if rows.len() == before {
                    println!("\n{stage}");
                    println!(
                        "{:>5} {:>9} {:>9} {:>13} {:>14} {:>9} {:>6}  {:>5} {:>5}  call",
                        "count", "us", "cold", "GB/s", "TFLOP/s", "floor", "roof", "x", "lib"
                    );
                }
                let (us, cold_us) = bench.time(&call).with_context(|| label(&call))?;
                let row = Row { stage, call, count, us, cold_us };
                print(&row, &ceiling, [&against, &library].map(|file| file.get(&key(&row)).copied()));
                rows.push(row);
            }
            summarize(&rows[before..], &ceiling, &against, &library);
        }
        if rows.is_empty() {
            bail!("no row contains {filter:?}");
        }
        arguments.csv.as_deref().map_or(Ok(()), |path| write_csv(path, &rows, &ceiling))
    }

    /// `others` are microseconds before and of a library.
    fn print(row: &Row, ceiling: &Ceiling, others: [Option<f64>; 2]) {
        let (bytes, flops) = (row.call.bytes() as f64 / row.us, row.call.flops() as f64 / row.us);
        let floor = floor_us(ceiling, &row.call);
        let [before, library] =
            others.map(|us| us.map(|us| format!("{:.2}", us / row.us)).unwrap_or_default());
        println!(
            "{:>5} {:>9.2} {:>9.2} {:>6.0} ({:>3.0}%) {:>7.1} ({:>3.0}%) {floor:>9.2} {:>5.0}%  {before:>5} {library:>5}  {}",
            row.count,
            row.us,
            row.cold_us,
            bytes / 1e3,
            1e8 * bytes / ceiling.bytes,
            flops / 1e6,
            1e8 * flops / ceiling.flops,
            100.0 * floor / row.us,
            label(&row.call),
        );
    }

    /// Count times microseconds of a stage, by verb and in all.
    fn summarize(
        rows: &[Row],
        ceiling: &Ceiling,
        against: &HashMap<String, f64>,
        library: &HashMap<String, f64>,
    ) {
        if rows.is_empty() {
            return;
        }
        let us = |row: &Row| row.count as f64 * row.us;
        let floor = |row: &Row| row.count as f64 * floor_us(ceiling, &row.call);
        let total: f64 = rows.iter().map(us).sum();
        let mut verbs: BTreeMap<&str, (f64, f64)> = BTreeMap::new();
        for row in rows {
            let sum = verbs.entry(row.call.name()).or_default();
            *sum = (sum.0 + us(row), sum.1 + floor(row));
        }
        for (verb, (us, floor)) in verbs {
            println!("{us:>11.1} us {:>4.0}%  floor {floor:>9.1}  {verb}", 100.0 * us / total);
        }
        let logarithms: f64 = rows.iter().map(|row| (floor_us(ceiling, &row.call) / row.us).ln()).sum();
        let floors: f64 = rows.iter().map(floor).sum();
        println!(
            "{total:>11.1} us  100%  floor {floors:>9.1}  all: {:.0}% of the roofline, geometric mean of the rows {:.0}%",
            100.0 * floors / total,
            100.0 * (logarithms / rows.len() as f64).exp(),
        );
        for (name, other) in [("before", against), ("by the best library kernels", library)] {
            let known =
                rows.iter().filter_map(|row| Some((us(row), row.count as f64 * other.get(&key(row))?)));
            let (ours, theirs) = known.fold((0.0, 0.0), |sum, (ours, theirs)| (sum.0 + ours, sum.1 + theirs));
            if ours > 0.0 {
                println!(
                    "{theirs:>11.1} us {name}, where both were measured: {:.2}x as fast now",
                    theirs / ours
                );
            }
        }
    }

    /// What a row is found by in an earlier file.
    fn key(row: &Row) -> String {
        format!("{},{}", row.stage, label(&row.call))
    }

    const HEADER: &str = "stage,call,count,us,cold_us,gb_per_s,tflop_per_s,floor_us";

    fn write_csv(path: &Path, rows: &[Row], ceiling: &Ceiling) -> anyhow::Result<()> {
        let mut text = format!("{HEADER}\n");
        for row in rows {
            text += &format!(
                "{},{},{:.3},{:.3},{:.1},{:.2},{:.3}\n",
                key(row),
                row.count,
                row.us,
                row.cold_us,
                row.call.bytes() as f64 / row.us / 1e3,
                row.call.flops() as f64 / row.us / 1e6,
                floor_us(ceiling, &row.call),
            );
        }
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        }
        fs::write(path, text).with_context(|| path.display().to_string())
    }

    /// The columns that a file to compare with begins with.
    const COMPARED: &str = "stage,call,count,us";

    /// Microseconds by [`key`].
    fn read_csv(path: &Path) -> anyhow::Result<HashMap<String, f64>> {
        let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
        let mut lines = text.lines();
        if !lines.next().is_some_and(|header| header.starts_with(COMPARED)) {
            bail!("{}: expected a table that begins with the columns {COMPARED}", path.display());
        }
        let row = |line: &str| {
            let fields: Vec<&str> = line.split(',').collect();
            let us = fields.get(3)?.parse().ok()?;
            Some((format!("{},{}", fields[0], fields[1]), us))
        };
        lines
            .map(|line| row(line).with_context(|| format!("{}: not a row: {line}", path.display())))
            .collect()
    }
}
