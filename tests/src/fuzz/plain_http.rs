//! HTTP/1.1 byte for byte, as no client library would send it: targets and headers are written as
//! they are.

use std::io::{BufRead as _, BufReader, ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

/// How long an answer may take.
const ANSWER_MAX: Duration = Duration::from_secs(50);
/// Longest body that is read.
const BODY_MAX: usize = 64 << 20;

/// A connection to a host, made again as often as the host closes it.
#[derive(Debug)]
pub struct Connection {
    address: String,
    stream: Option<BufReader<TcpStream>>,
}

/// What a host answered.
#[derive(Debug, Default)]
pub struct Response {
    /// The status.
    pub status: u16,
    /// Headers by lower-case name.
    pub headers: Vec<(String, String)>,
    /// The body; of a stream without an end nothing.
    pub body: Vec<u8>,
}

impl Response {
    /// The value of a header.
    pub fn header(&self, wanted: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(name, _)| name == wanted)
            .map(|(_, value)| value.as_str())
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

impl Connection {
    /// A connection to the host at a URL.
    pub fn new(url: &str) -> Self {
        let address = url
            .trim_start_matches("http://")
            .trim_end_matches('/')
            .to_owned();
        Self {
            address,
            stream: None,
        }
    }

    /// Sends a request: method, target and headers as they are, and the length of the body. None if
    /// the host closed the connection without an answer.
    ///
    /// # Panics
    ///
    /// When there is no answer in time, or one that is no HTTP.
    pub fn send(
        &mut self,
        method: &str,
        target: &[u8],
        headers: &[(String, Vec<u8>)],
        body: &[u8],
    ) -> Option<Response> {
        let mut request = [
            method.as_bytes(),
            b" ",
            target,
            b" HTTP/1.1\r\nhost: ",
            self.address.as_bytes(),
        ]
        .concat();
        for (name, value) in headers {
            request.extend([&b"\r\n"[..], name.as_bytes(), b": ", value].concat());
        }
        request.extend(format!("\r\ncontent-length: {}\r\n\r\n", body.len()).into_bytes());
        request.extend(body);
        let is_old = self.stream.is_some();
        match self.exchange(method, &request) {
            // The host may have closed it while nothing was sent.
            None if is_old => self.exchange(method, &request),
            answer => answer,
        }
    }

    fn exchange(&mut self, method: &str, request: &[u8]) -> Option<Response> {
        let mut stream = self.stream.take().unwrap_or_else(|| {
            let stream = TcpStream::connect(&self.address).expect("the host listens");
            stream.set_read_timeout(Some(ANSWER_MAX)).expect("a socket");
            stream.set_nodelay(true).expect("a socket");
            BufReader::new(stream)
        });
        // One that is refused early may be answered before all of it was taken.
        let _ = stream.get_mut().write_all(request);
        let mut response = Response::default();
        let status = line(&mut stream)?;
        assert!(status.starts_with("HTTP/1.1 "), "no HTTP: {status:?}");
        response.status = status[9..12].parse().expect("a status is a number");
        loop {
            let header = line(&mut stream)?;
            if header.is_empty() {
                break;
            }
            let (name, value) = header.split_once(':').expect("a header has a colon");
            response
                .headers
                .push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        if response
            .header("content-type")
            .is_some_and(|kind| kind.starts_with("text/event-stream"))
        {
            return Some(response);
        }
        if method != "HEAD" && !matches!(response.status, 204 | 304) {
            response.body = body(&response, &mut stream)?;
        }
        if response.header("connection") != Some("close") {
            self.stream = Some(stream);
        }
        Some(response)
    }
}

fn line(stream: &mut BufReader<TcpStream>) -> Option<String> {
    let mut line = Vec::new();
    match stream.read_until(b'\n', &mut line) {
        Ok(0) => return None,
        Ok(_) => {}
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
            panic!("no answer within {ANSWER_MAX:?}")
        }
        Err(_) => return None,
    }
    let text = String::from_utf8_lossy(&line);
    Some(text.trim_end_matches(['\r', '\n']).to_owned())
}

fn body(response: &Response, stream: &mut BufReader<TcpStream>) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    if let Some(length) = response.header("content-length") {
        let length: usize = length.parse().expect("a length is a number");
        assert!(length <= BODY_MAX, "a body of {length} bytes");
        body.resize(length, 0);
        stream.read_exact(&mut body).ok()?;
        return Some(body);
    }
    if response.header("transfer-encoding") != Some("chunked") {
        stream.read_to_end(&mut body).ok()?;
        return Some(body);
    }
    loop {
        let length = usize::from_str_radix(line(stream)?.split(';').next()?, 16)
            .expect("a length is a number");
        let from = body.len();
        assert!(
            from + length <= BODY_MAX,
            "a body of more than {BODY_MAX} bytes"
        );
        body.resize(from + length, 0);
        stream.read_exact(&mut body[from..]).ok()?;
        line(stream)?;
        if length == 0 {
            return Some(body);
        }
    }
}
