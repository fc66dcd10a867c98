//! An nginx with the RTMP module on free ports, which ends with us.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

use crate::{api::Client, ports::free_port, program::Program, shell::which};

/// Debian's place of the module.
pub(crate) const MODULE: &str = "/usr/lib/nginx/modules/ngx_rtmp_module.so";

/// The running server.
#[derive(Debug)]
pub struct Nginx {
    /// Port of RTMP; the application is `live`.
    pub rtmp: u16,
    /// Where `/stat` is.
    pub stat: String,
    _program: Program,
    _dir: tempfile::TempDir,
}

fn binary() -> Option<PathBuf> {
    which("nginx").or_else(|| Some(PathBuf::from("/usr/sbin/nginx")).filter(|path| path.exists()))
}

impl Nginx {
    /// Starts it.
    ///
    /// # Errors
    /// When nginx or its module is not installed, or it does not come up.
    pub fn start() -> Result<Self> {
        let nginx = binary().context("nginx is not in PATH")?;
        ensure!(Path::new(MODULE).exists(), "nginx has no RTMP module (libnginx-mod-rtmp)");
        let dir = tempfile::tempdir()?;
        let (rtmp, http) = (free_port()?, free_port()?);
        let place = dir.path().display();
        let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .iter()
            .map(|what| format!("{what}_temp_path {place}/{what};\n"))
            .collect();
        let config = format!(
            "load_module {MODULE};\ndaemon off;\nmaster_process off;\npid {place}/pid;\nerror_log {place}/error.log;\nevents {{}}\n\
             rtmp {{ server {{ listen 127.0.0.1:{rtmp}; application live {{ live on; }} }} }}\n\
             http {{ access_log off;\n{temporary} server {{ listen 127.0.0.1:{http}; location /stat {{ rtmp_stat all; }} }} }}\n",
        );
        let file = dir.path().join("nginx.conf");
        fs::write(&file, config)?;
        let mut command = Command::new(nginx);
        command.arg("-c").arg(&file).arg("-p").arg(dir.path());
        let mut program = Program::start("nginx", &mut command, dir.path())?;
        let stat = format!("http://127.0.0.1:{http}");
        let end = Instant::now() + Duration::from_secs(10);
        while Client::new(&stat).text("/stat").is_err() {
            program.alive()?;
            if Instant::now() > end {
                bail!("nginx does not answer");
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(Self { rtmp, stat, _program: program, _dir: dir })
    }
}
