//! Certificates for tests, created by openssl, and the web configuration that serves them.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use crate::shell::{output, which};

/// A test password, and its bcrypt hash (cost 10, as `htpasswd -nBC 10` makes it).
pub const PASSWORD: (&str, &str) = ("secret", "$2b$10$4iYiSyUwppEHzWjR3M/GD.c/J9MW0bOgpf36v67jVwXtx5lHtvjp2");

/// A certificate authority in a directory.
#[derive(Debug)]
pub struct Authority {
    openssl: PathBuf,
    dir: PathBuf,
}

impl Authority {
    /// Creates the authority; `None` without openssl.
    ///
    /// # Errors
    /// When openssl fails.
    pub fn new(dir: &Path) -> Result<Option<Self>> {
        let Some(openssl) = which("openssl") else { return Ok(None) };
        let this = Self { openssl, dir: dir.to_owned() };
        this.key("ca.key")?;
        let args = "req -x509 -new -key ca.key -out ca.pem -subj /CN=authority -days 2";
        this.run(&args.split(' ').collect::<Vec<_>>())?;
        Ok(Some(this))
    }

    /// The PEM file of the authority.
    #[must_use]
    pub fn ca(&self) -> PathBuf {
        self.dir.join("ca.pem")
    }

    /// Issues a certificate for 127.0.0.1 and `host`: `NAME.pem` and `NAME.key`.
    ///
    /// # Errors
    /// When openssl fails.
    pub fn issue(&self, name: &str, host: &str) -> Result<(PathBuf, PathBuf)> {
        let file = |kind: &str| format!("{name}.{kind}");
        self.key(&file("key"))?;
        self.run(&["req", "-new", "-key", &file("key"), "-out", &file("csr"), "-subj", &format!("/CN={name}")])?;
        let names = format!("subjectAltName=DNS:{host},IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\n");
        fs::write(self.dir.join(file("ext")), names)?;
        let (csr, pem, ext) = (file("csr"), file("pem"), file("ext"));
        let sign = ["x509", "-req", "-in", &csr, "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-out", &pem];
        self.run(&[&sign[..], &["-days", "2", "-extfile", &ext]].concat())?;
        Ok((self.dir.join(file("pem")), self.dir.join(file("key"))))
    }

    /// The serial number of the certificate that the server at `address` presents.
    ///
    /// # Errors
    /// When no server presents a certificate there.
    pub fn serial(&self, address: &str) -> Result<String> {
        let script = format!(
            "{0} s_client -connect {address} </dev/null 2>/dev/null | {0} x509 -noout -serial",
            self.openssl.display()
        );
        output(Command::new("sh").args(["-c", &script])).context("the certificate of a server")
    }

    /// Writes a web configuration with a certificate of this authority and further lines; returns
    /// its path.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn web(&self, name: &str, further: &str) -> Result<PathBuf> {
        let text = format!(
            "tls_server_config:\n  cert_file: {name}.pem\n  key_file: {name}.key\n{further}\nbasic_auth_users:\n  prom: {}\n",
            PASSWORD.1
        );
        let file = self.dir.join("web.yml");
        fs::write(&file, text)?;
        fs::write(self.dir.join("password"), PASSWORD.0)?;
        Ok(file)
    }

    fn key(&self, name: &str) -> Result<()> {
        self.run(&["ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", name])
    }

    fn run(&self, args: &[&str]) -> Result<()> {
        output(Command::new(&self.openssl).args(args).current_dir(&self.dir)).map(|_| ())
    }
}
