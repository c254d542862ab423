//! A page in a headless Chromium, through its DevTools protocol
//! (<https://chromedevtools.github.io/devtools-protocol/>).
//!
//! A crate for this would do, but those that there are change features of what builds llama.cpp, which
//! would then be built once more for the tests.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;
use tungstenite::{Message, WebSocket};

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(60);
const PROGRAMS: [&str; 6] = [
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
];

/// A page, open as long as this lives.
pub(crate) struct Page {
    browser: Child,
    socket: WebSocket<TcpStream>,
    session: Option<String>,
    n_sent: u64,
    /// What went wrong in the page's scripts.
    errors: Vec<Value>,
    /// The addresses that the page has asked for.
    requests: Vec<String>,
    _profile: TempDir,
}

impl Page {
    /// Opens a page of a file; none where there is no Chromium, which is said.
    pub(crate) fn open(path: &Path) -> Option<Self> {
        let mut page = Self::blank()?;
        page.go(&format!("file://{}", path.display()));
        page.expect("location.protocol + document.readyState", "file:complete");
        Some(page)
    }

    /// Opens the page that is served at `url`.
    pub(crate) fn open_served(url: &str) -> Option<Self> {
        let mut page = Self::blank()?;
        page.go(url);
        page.expect("location.protocol + document.readyState", "http:complete");
        Some(page)
    }

    /// Goes to an address, or there again.
    pub(crate) fn go(&mut self, url: &str) {
        self.call("Page.navigate", json!({ "url": url }));
    }

    fn blank() -> Option<Self> {
        let profile = tempfile::tempdir().expect("a folder of our own");
        let Some((browser, address)) = launch(profile.path()) else {
            let skipped = "skipped: the page's test in a browser needs Chromium (or `CHROME=FILE`)";
            // Not `eprintln`, which is shown for failures only.
            writeln!(std::io::stderr(), "{skipped}").expect("stderr can be written");
            return None;
        };
        let host = address.trim_start_matches("ws://");
        let host = host.split('/').next().expect("a host and a port");
        let stream = TcpStream::connect(host).expect("Chromium listens");
        let timeout = stream.set_read_timeout(Some(PATIENCE));
        timeout.expect("a time of more than nothing");
        let (socket, _) = tungstenite::client(address.as_str(), stream).expect("a handshake");
        let mut page = Self {
            browser,
            socket,
            session: None,
            n_sent: 0,
            errors: Vec::new(),
            requests: Vec::new(),
            _profile: profile,
        };
        let target = page.call("Target.createTarget", json!({"url": "about:blank"}));
        let target = json!({"targetId": target["targetId"], "flatten": true});
        let attached = page.call("Target.attachToTarget", target);
        page.session = attached["sessionId"].as_str().map(str::to_owned);
        page.call("Runtime.enable", json!({}));
        page.call("Log.enable", json!({}));
        page.call("Network.enable", json!({}));
        Some(page)
    }

    /// Calls a method of the protocol.
    fn call(&mut self, method: &str, params: Value) -> Value {
        self.n_sent += 1;
        let mut message = json!({"id": self.n_sent, "method": method, "params": params});
        if let Some(session) = &self.session {
            message["sessionId"] = json!(session);
        }
        let sent = self.socket.send(Message::text(message.to_string()));
        sent.expect("Chromium listens");
        loop {
            let Message::Text(answer) = self.socket.read().expect("Chromium answers") else {
                continue;
            };
            let mut answer: Value = serde_json::from_str(&answer).expect("JSON");
            if answer["id"] == self.n_sent {
                assert!(answer["error"].is_null(), "{method}: {}", answer["error"]);
                return answer["result"].take();
            }
            if answer["method"] == "Network.requestWillBeSent" {
                let url = answer["params"]["request"]["url"].as_str();
                self.requests.push(url.expect("an address").to_owned());
            }
            let is_error = answer["method"] == "Runtime.exceptionThrown"
                || answer["params"]["entry"]["level"] == "error";
            if is_error {
                self.errors.push(answer["params"].take());
            }
        }
    }

    /// What went wrong in the page's scripts so far.
    pub(crate) fn errors(&self) -> &[Value] {
        &self.errors
    }

    /// The addresses that the page has asked for so far.
    pub(crate) fn requests(&self) -> &[String] {
        &self.requests
    }

    /// The value of an expression of JavaScript.
    pub(crate) fn value(&mut self, expression: &str) -> Value {
        let params = json!({"expression": expression, "awaitPromise": true, "returnByValue": true});
        let mut result = self.call("Runtime.evaluate", params);
        let thrown = &result["exceptionDetails"];
        assert!(thrown.is_null(), "{expression}: {thrown}");
        result["result"]["value"].take()
    }

    /// What an element shows.
    pub(crate) fn text(&mut self, selector: &str) -> String {
        let selector = json!(selector);
        let value = self.value(&format!("document.querySelector({selector}).textContent"));
        value.as_str().expect("a text").to_owned()
    }

    /// Waits until an expression has this value.
    pub(crate) fn expect(&mut self, expression: &str, expected: impl Into<Value>) {
        let expected = expected.into();
        let start = Instant::now();
        loop {
            let value = self.value(expression);
            if value == expected {
                return;
            }
            assert!(
                start.elapsed() < PATIENCE,
                "`{expression}` is {value}, not {expected}"
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    pub(crate) fn expect_text(&mut self, selector: &str, expected: &str) {
        let selector = json!(selector);
        let shown = format!("document.querySelector({selector})?.textContent");
        self.expect(&shown, expected);
    }

    /// Shows the page in a window of this width, in pixels.
    pub(crate) fn set_width(&mut self, width: u32) {
        let params =
            json!({"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": false});
        self.call("Emulation.setDeviceMetricsOverride", params);
    }

    /// Whether all that is shown fits into the window's width.
    pub(crate) fn fits(&mut self) -> bool {
        let fits = "document.documentElement.scrollWidth <= document.documentElement.clientWidth";
        self.value(fits) == true
    }

    /// Checks that it fits into wide and narrow windows, that its scripts had no errors, and that it loaded nothing.
    pub(crate) fn check_alone(&mut self) {
        for width in [1300, 400] {
            self.set_width(width);
            self.expect("innerWidth", width);
            assert!(self.fits(), "{width} pixels");
        }
        assert!(self.errors().is_empty(), "{:?}", self.errors());
        self.expect("performance.getEntriesByType('resource').length", 0);
    }

    /// Moves the pointer to the middle of an element.
    pub(crate) fn hover(&mut self, selector: &str) {
        self.point(selector, &["mouseMoved"]);
    }

    pub(crate) fn click(&mut self, selector: &str) {
        self.point(selector, &["mouseMoved", "mousePressed", "mouseReleased"]);
    }

    /// Presses on an element at a share of its width, as sliders are moved.
    pub(crate) fn click_at(&mut self, selector: &str, share: f64) {
        let [x, y] = self.place(selector, share);
        self.mouse(x, y, &["mouseMoved", "mousePressed", "mouseReleased"]);
    }

    fn point(&mut self, selector: &str, events: &[&str]) {
        let [x, y] = self.place(selector, 0.5);
        self.mouse(x, y, events);
    }

    /// Where an element is, once it is shown and in sight: a share of its width, and the middle of its height.
    fn place(&mut self, selector: &str, share: f64) -> [f64; 2] {
        let selector = json!(selector);
        let is_shown = format!("document.querySelector({selector})?.getClientRects().length > 0");
        self.expect(&is_shown, true);
        let place = self.value(&format!(
            "(() => {{
                const element = document.querySelector({selector});
                element.scrollIntoView({{ block: 'center', behavior: 'instant' }});
                const box = element.getBoundingClientRect();
                return [box.x + box.width * {share}, box.y + box.height / 2];
            }})()"
        ));
        [0, 1].map(|i| place[i].as_f64().expect("a number"))
    }

    fn mouse(&mut self, x: f64, y: f64, events: &[&str]) {
        for event in events {
            let (button, count) = match *event {
                "mouseMoved" => ("none", 0),
                _ => ("left", 1),
            };
            self.call(
                "Input.dispatchMouseEvent",
                json!({"type": event, "x": x, "y": y, "button": button, "clickCount": count}),
            );
        }
    }

    /// Drops a file on an element.
    pub(crate) fn drop_file(&mut self, selector: &str, path: &Path) {
        let [x, y] = self.place(selector, 0.5);
        let path = path.canonicalize().expect("a file");
        let data = json!({"items": [], "files": [path], "dragOperationsMask": 1});
        for event in ["dragEnter", "dragOver", "drop"] {
            let params = json!({"type": event, "x": x, "y": y, "data": data});
            self.call("Input.dispatchDragEvent", params);
        }
    }

    /// Gives a file to an input of files, as its dialogue does.
    pub(crate) fn choose_file(&mut self, selector: &str, path: &Path) {
        let document = self.call("DOM.getDocument", json!({}));
        let root = &document["root"]["nodeId"];
        let node = self.call(
            "DOM.querySelector",
            json!({"nodeId": root, "selector": selector}),
        );
        let path = path.canonicalize().expect("a file");
        let params = json!({"files": [path], "nodeId": node["nodeId"]});
        self.call("DOM.setFileInputFiles", params);
    }

    /// Lets downloads go to a folder.
    pub(crate) fn save_downloads(&mut self, folder: &Path) {
        let folder = folder.canonicalize().expect("a folder");
        let params = json!({"behavior": "allow", "downloadPath": folder});
        self.call("Browser.setDownloadBehavior", params);
    }

    /// Presses and releases a key such as `ArrowUp`.
    pub(crate) fn press(&mut self, key: &str) {
        let code = match key {
            "Tab" => 9,
            "Enter" => 13,
            "Escape" => 27,
            "ArrowLeft" => 37,
            "ArrowUp" => 38,
            "ArrowRight" => 39,
            "ArrowDown" => 40,
            other => panic!("no code of `{other}` is known"),
        };
        for event in ["keyDown", "keyUp"] {
            let mut params =
                json!({"type": event, "key": key, "code": key, "windowsVirtualKeyCode": code});
            if key == "Enter" && event == "keyDown" {
                params["text"] = json!("\r"); // by which it presses buttons
            }
            self.call("Input.dispatchKeyEvent", params);
        }
    }

    /// Enters a text where the focus is.
    pub(crate) fn enter(&mut self, text: &str) {
        self.call("Input.insertText", json!({ "text": text }));
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        let _ = self.browser.kill();
        let _ = self.browser.wait();
    }
}

/// Starts Chromium; none where there is none. The address is that of its protocol.
fn launch(profile: &Path) -> Option<(Child, String)> {
    let given = std::env::var("CHROME").ok();
    let programs = PROGRAMS.into_iter().map(str::to_owned);
    let mut started = given.into_iter().chain(programs).filter_map(|program| {
        let browser = Command::new(program)
            .args([
                "--headless=new",
                "--remote-debugging-port=0",
                "--window-size=1400,1000",
            ])
            .args([
                "--no-first-run",
                "--disable-component-update",
                "--disable-gpu",
            ])
            .arg("--no-sandbox") // it cannot be had as root
            .arg(format!("--user-data-dir={}", profile.display()))
            .stderr(Stdio::piped())
            .spawn();
        browser.ok()
    });
    let mut browser = started.next()?;
    let stderr = browser.stderr.take().expect("it is piped");
    let mut lines = BufReader::new(stderr).lines().map_while(Result::ok);
    let address = lines.find_map(|line| {
        let address = line.strip_prefix("DevTools listening on ");
        address.map(str::to_owned)
    });
    // What else it says is read on, so that it does not wait for a reader.
    std::thread::spawn(move || lines.for_each(drop));
    Some((browser, address.expect("Chromium says where it listens")))
}
