//! Images on their way to the controller and back, beside a plain copy of the same file over the same loopback; and what a
//! second image costs of which one layer is new. They take turns.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use amphi_api::image::{BlobRole, ImageCreate, ImageFormat};
use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::{Bench, Figure, median};
use crate::archive::{archive, noise};
use crate::counting::counting;
use crate::face::Face;
use crate::story::read_env;

/// Of the file, in MiB.
const SIZE: usize = 200;
const ROUNDS: usize = 3;
/// Of an image's layers, in MiB; the second image has the last one more.
const LAYERS: [usize; 3] = [32, 16, 8];

pub(super) fn measure(bench: &Bench) -> Result<Vec<Figure>> {
    let folder = bench.lab.layout().root().join("bench-transfers");
    std::fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
    let face = Face::of(bench.lab.layout())?;
    let (mut copied, mut sent, mut plain_back) = (vec![], vec![], vec![]);
    let (mut read_back, mut by_curl) = (vec![], vec![]);
    for round in 0..ROUNDS {
        let (file, back) = (folder.join("file"), folder.join("back"));
        std::fs::write(&file, noise(&format!("transfer-{round}"), SIZE << 20))?;
        File::open(&file)?.sync_all()?;
        copied.push(copy(&file, &back, true)?);
        let request = ImageCreate {
            name: format!("transfer-{round}"),
            format: ImageFormat::Raw,
            cmdline: String::new(),
        };
        let image = bench.runtime.block_on(bench.client.create_image(&request))?;
        let began = Instant::now();
        let upload = bench.client.upload_file(image.id, BlobRole::Disk, &file, Box::new(|_, _| {}));
        bench.runtime.block_on(upload)?;
        sent.push(began.elapsed().as_secs_f64());
        plain_back.push(copy(&file, &back, false)?);
        for (took, download) in [(&mut read_back, download as Download), (&mut by_curl, curl)] {
            took.push(download(&face, &image.id.to_string(), &back)?);
            ensure!(std::fs::metadata(&back)?.len() == (SIZE << 20) as u64, "not all came back");
        }
        bench.runtime.block_on(bench.client.delete_image(image.id))?;
    }
    let second = second_image(bench, &folder)?;
    std::fs::remove_dir_all(&folder)?;
    let rate = |seconds: &[f64]| SIZE as f64 / median(seconds);
    Ok(vec![
        Figure { name: "plain_copy_mib_s", value: rate(&copied), goal: "" },
        Figure { name: "upload_to_plain_copy_ratio", value: rate(&sent) / rate(&copied), goal: ">= 0.8" },
        Figure {
            name: "download_to_plain_copy_ratio",
            value: rate(&read_back) / rate(&plain_back),
            goal: ">= 0.8",
        },
        Figure {
            name: "download_by_curl_to_plain_copy_ratio",
            value: rate(&by_curl) / rate(&plain_back),
            goal: "",
        },
        Figure { name: "second_image_bytes_to_new_layer", value: second, goal: "about 1" },
    ])
}

/// A file over a connection on loopback into another file, in seconds; `durable`: as what the controller has taken is.
fn copy(from: &Path, to: &Path, durable: bool) -> Result<f64> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let to = to.to_owned();
    let taker = std::thread::spawn(move || -> Result<()> {
        let (mut near, _) = listener.accept()?;
        let mut file = File::create(&to)?;
        pass(&mut near, &mut file)?;
        if durable {
            file.sync_all()?;
        }
        near.write_all(b".")?;
        Ok(())
    });
    let began = Instant::now();
    let mut far = TcpStream::connect(address)?;
    pass(&mut File::open(from)?, &mut far)?;
    far.shutdown(std::net::Shutdown::Write)?;
    far.read_exact(&mut [0])?;
    let took = began.elapsed().as_secs_f64();
    taker.join().map_err(|_| anyhow::anyhow!("the copy failed"))??;
    Ok(took)
}

/// In pieces of a size that others use, through this process: no `sendfile`.
fn pass(from: &mut impl Read, to: &mut impl Write) -> Result<()> {
    let mut buffer = vec![0; 256 << 10];
    loop {
        match from.read(&mut buffer)? {
            0 => return Ok(()),
            read => to.write_all(&buffer[..read])?,
        }
    }
}

/// A way to have an image in a file: how long it took, in seconds.
type Download = fn(&Face, &str, &Path) -> Result<f64>;

/// By the image API, read and written as the plain copy is: what remains is the controller's.
fn download(face: &Face, image: &str, to: &Path) -> Result<f64> {
    let (url, token) = face.at(&format!("image/v2/images/{image}/file"))?;
    let (host, path) = url.trim_start_matches("http://").split_once('/').context("the face's address")?;
    let began = Instant::now();
    let mut near = TcpStream::connect(host)?;
    let asked =
        format!("GET /{path} HTTP/1.1\r\nhost: {host}\r\nx-auth-token: {token}\r\nconnection: close\r\n\r\n");
    near.write_all(asked.as_bytes())?;
    let mut file = File::create(to)?;
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        near.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head).to_ascii_lowercase();
    ensure!(head.starts_with("http/1.1 200") && head.contains("content-length:"), "{head}");
    pass(&mut near, &mut file)?;
    Ok(began.elapsed().as_secs_f64())
}

/// The same with curl, which reads and writes 16 KiB at once.
fn curl(face: &Face, image: &str, to: &Path) -> Result<f64> {
    let (url, token) = face.at(&format!("image/v2/images/{image}/file"))?;
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--show-error", "--fail", "--max-time", "120", "--config", "-", "--output"])
        .arg(to);
    let began = Instant::now();
    let mut curl = curl.stdin(Stdio::piped()).spawn().context("curl")?;
    let config = format!("url = \"{url}\"\nheader = \"x-auth-token: {token}\"\n");
    curl.stdin.take().context("curl's input")?.write_all(config.as_bytes())?;
    ensure!(curl.wait()?.success(), "curl could not fetch {url}");
    Ok(began.elapsed().as_secs_f64())
}

/// What is sent to the registry for an image of which one layer is new, as a part of that layer.
fn second_image(bench: &Bench, folder: &Path) -> Result<f64> {
    let env = read_env(&bench.lab.layout().env())?;
    let of = |name: &str| {
        let found = env.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone());
        found.with_context(|| format!("{name} is not in the lab's env"))
    };
    let (registry, password) = (of("AMPHI_URL")?, of("OS_PASSWORD")?);
    let registry = registry.trim_start_matches("http://").parse().context("the registry's address")?;
    let (door, counted) = bench.runtime.block_on(bench.runtime.spawn(counting(registry)))??;
    let push = |layers: &[usize], tag: &str| -> Result<u64> {
        let (archive, _) = archive(folder, "second", layers)?;
        let before = counted.up();
        let ended = Command::new("skopeo")
            .args(["--insecure-policy", "copy", "--dest-tls-verify=false"])
            .arg(format!("--dest-creds=admin:{password}"))
            .arg(format!("docker-archive:{}", archive.display()))
            .arg(format!("docker://{door}/admin/{tag}"))
            .output()
            .context("skopeo")?;
        ensure!(ended.status.success(), "skopeo: {}", String::from_utf8_lossy(&ended.stderr));
        Ok(counted.up() - before)
    };
    let first = push(&LAYERS[..2], "bench:first")?;
    let second = push(&LAYERS, "bench:second")?;
    println!(
        "{}",
        json!({"first_image_bytes": first, "second_image_bytes": second, "new_layer_mib": LAYERS[2]})
    );
    Ok(second as f64 / (LAYERS[2] << 20) as f64)
}
