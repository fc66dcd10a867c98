//! nginx with the RTMP module on free ports.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};

use crate::{api::Client, ports::free_port, program::Program, shell::which};

/// Path of the module on Debian.
pub(crate) const MODULE: &str = "/usr/lib/nginx/modules/ngx_rtmp_module.so";

/// A running nginx, which ends when this is dropped.
#[derive(Debug)]
pub struct Nginx {
    /// The RTMP port; the application is `live`.
    pub rtmp: u16,
    /// Base URL of `/stat`.
    pub stat: String,
    _program: Program,
    _dir: tempfile::TempDir,
}

fn binary() -> Option<PathBuf> {
    which("nginx").or_else(|| Some(PathBuf::from("/usr/sbin/nginx")).filter(|path| path.exists()))
}

impl Nginx {
    /// Starts nginx.
    ///
    /// # Errors
    /// When nginx or its module is not installed, or nginx does not start.
    pub fn start() -> Result<Self> {
        let nginx = binary().context("nginx is not in PATH")?;
        ensure!(Path::new(MODULE).exists(), "nginx has no RTMP module (libnginx-mod-rtmp)");
        let dir = tempfile::tempdir()?;
        let (rtmp, http) = (free_port()?, free_port()?);
        let path = dir.path().display();
        let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .iter()
            .map(|kind| format!("{kind}_temp_path {path}/{kind};\n"))
            .collect();
        let config = format!(
            "load_module {MODULE};\ndaemon off;\nmaster_process off;\npid {path}/pid;\nerror_log {path}/error.log;\nevents {{}}\n\
             rtmp {{ server {{ listen 127.0.0.1:{rtmp}; application live {{ live on; }} }} }}\n\
             http {{ access_log off;\n{temporary} server {{ listen 127.0.0.1:{http}; location /stat {{ rtmp_stat all; }} }} }}\n",
        );
        let file = dir.path().join("nginx.conf");
        fs::write(&file, config)?;
        let mut command = Command::new(nginx);
        command.arg("-c").arg(&file).arg("-p").arg(dir.path());
        let mut program = Program::start("nginx", &mut command, dir.path())?;
        let stat = format!("http://127.0.0.1:{http}");
        Client::new(&stat).wait("/stat", Duration::from_secs(10), || program.alive())?;
        Ok(Self { rtmp, stat, _program: program, _dir: dir })
    }
}
