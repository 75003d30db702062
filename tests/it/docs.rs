//! What the pages say is what the gateway does: their commands run, their tables are complete.

use std::path::Path;
use std::process::Command;

use crate::support::gateway::{self, Gateway, run};
use crate::support::llama;

fn page(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The lines of a page's shell blocks that begin so.
fn commands<'a>(page: &'a str, begin: &str) -> Vec<&'a str> {
    let blocks = page.split("```sh\n").skip(1).filter_map(|rest| rest.split("```").next());
    blocks.flat_map(str::lines).map(str::trim).filter(|line| line.starts_with(begin)).collect()
}

async fn passes(gateway: &Gateway, command: &str) {
    let here = command.replace("localhost:9001", &gateway.address().to_string());
    let output = Command::new("sh").arg("-c").arg(here.replace("curl ", "curl --fail -sS ")).output();
    let output = output.expect("sh and curl are there");
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_curl_command_works() {
    let llama = llama::scripted().start().await;
    let gateway = gateway::bare(&llama.url()).start().await;
    let pages = ["README.md", "docs/OBSERVE.md"].map(page);
    let commands: Vec<&str> = pages.iter().flat_map(|page| commands(page, "curl ")).collect();
    assert!(commands.len() >= 3, "{commands:?}");
    for command in commands {
        passes(&gateway, command).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_for_those_on_call_is_right() {
    let page = page("docs/OPERATIONS.md");
    let llama = llama::scripted().start().await;
    let servers = format!("upstreams: {{local: {{servers: [{{url: {}, name: gpu1}}]}}}}", llama.url());
    let gateway = gateway::before_urls(&[]).yaml(&servers).start().await;
    let commands = commands(&page, "curl ");
    assert!(commands.len() >= 6, "{commands:?}");
    for command in commands {
        passes(&gateway, &command.replace("localhost:9002", &gateway.admin_address().to_string())).await;
    }
    let scrape = gateway.scrape().await;
    let section = |title: &str| {
        let text = page.split(&format!("## {title}\n")).nth(1).expect("the section is there");
        let rows = text.split("\n## ").next().unwrap_or_default().lines();
        let cells = rows.filter_map(|line| line.strip_prefix("| `")?.split('`').next());
        cells.map(str::to_owned).collect::<Vec<_>>()
    };
    for metric in section("What to alert on") {
        assert!(scrape.has_family(&metric), "{metric}");
    }
    let said = said();
    for line in section("In the log") {
        // This one is the system's own word.
        assert!(said.contains(&line) || line == "Too many open files", "nothing says `{line}`");
    }
}

/// All that the sources say, each text on one line.
fn said() -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let (mut folders, mut said) = (vec![root], String::new());
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("it is readable") {
            let path = entry.expect("it is readable").path();
            if path.is_dir() {
                folders.push(path);
            } else {
                said += &std::fs::read_to_string(path).expect("sources are UTF-8");
            }
        }
    }
    let lines = said.split("\\\n").map(str::trim_start);
    lines.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_people_get_keys() {
    let page = page("docs/SHARE.md");
    let folder = gateway::Folder::new("share");
    let yaml = page.split("```yaml\n").nth(1).and_then(|rest| rest.split("```").next()).expect("a file");
    let file = folder.file("gateway.yaml", &yaml.replace("\n   ", "\n").replacen("   ", "", 1));
    let path = format!("{}:/usr/bin:/bin", gateway::binary().with_file_name("").display());
    let sh = |command: &str, key: &str, address: &str| {
        let mut sh = Command::new("sh");
        sh.args(["-c", command]).current_dir(file.with_file_name("")).env("PATH", &path);
        let output =
            sh.env("OPENAI_API_KEY", key).env("OPENAI_BASE_URL", address).output().expect("there is a shell");
        assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    };
    let add = [commands(&page, "ai-gateway key add"), commands(&page, "for name")].concat();
    let said: Vec<String> = add.iter().map(|command| sh(command, "", "")).collect();
    let alice = &said[0];
    assert!(said.len() == 3 && alice.starts_with("sk-") && said[2].lines().count() == 8, "{said:?}");
    sh(commands(&page, "ai-gateway check")[0], "", "");

    let llama = llama::scripted().start().await;
    let auth = format!("auth: {{keys_file: {}}}", file.with_file_name("keys.yaml").display());
    let gateway = gateway::before(&llama).yaml(&auth).start().await;
    let curl = commands(&page, "curl \"$OPENAI")[0].replace("curl ", "curl --fail -sS ");
    let answer = sh(&curl, alice, &format!("http://{}/v1", gateway.address()));
    assert!(answer.contains("choices"), "{answer}");
    assert_eq!(sh(commands(&page, "ai-gateway key list")[0], "", "").lines().count(), 1 + 10);
    sh(commands(&page, "ai-gateway key revoke")[0], "", "");
    assert_eq!(sh(commands(&page, "ai-gateway key list")[0], "", "").lines().count(), 1 + 9);
}

/// `UPDATE=1 cargo test --test it docs` writes it anew.
#[test]
fn the_page_of_metrics_is_the_table() {
    let made = ai_gateway::observe::reference();
    if std::env::var_os("UPDATE").is_some() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/METRICS.md");
        std::fs::write(path, &made).expect("the page is writable");
    }
    assert!(page("docs/METRICS.md") == made, "it is out of date: UPDATE=1 cargo test --test it docs");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_of_metrics_is_complete() {
    let llama = llama::scripted().start().await;
    let gateway = gateway::before(&llama).start().await;
    assert_eq!(gateway.chat("hi").await.status, 200);
    let scrape = gateway.scrape().await;
    let page = page("docs/METRICS.md");
    let mut rows: Vec<&str> =
        page.lines().filter_map(|line| line.strip_prefix("| `ai_gateway_")?.split('`').next()).collect();
    for row in &rows {
        assert!(scrape.has_family(&format!("ai_gateway_{row}")), "{row} is on the page alone");
    }
    rows.sort_unstable();
    let mut families = scrape.families("ai_gateway_");
    families.sort_unstable();
    assert_eq!(families, rows, "the page has one row for each family");
}

/// A metric or a label that nobody writes any more would make an alert that never comes, and an empty panel.
#[tokio::test(flavor = "multi_thread")]
async fn dashboard_and_alerts_name_what_there_is() {
    let llama = llama::scripted().start().await;
    let gateway = gateway::before(&llama).start().await;
    assert_eq!(gateway.chat("hi").await.status, 200);
    let scrape = gateway.scrape().await;
    let table = page("docs/METRICS.md");
    let labels: Vec<&str> = table.lines().filter(|line| line.starts_with("| `ai_gateway_")).collect();
    for name in ["grafana/dashboards/ai-gateway.json", "prometheus/alerts.yml", "prometheus/alerts.test.yml"]
    {
        let text = page(&format!("conf/{name}"));
        let words = text.split(|it: char| !it.is_ascii_alphanumeric() && it != '_');
        let metrics: Vec<&str> = words.filter(|word| word.starts_with("ai_gateway_")).collect();
        assert!(metrics.len() >= 10, "{name}: {metrics:?}");
        for metric in metrics {
            let family = ["_bucket", "_count", "_sum"].iter().find_map(|end| metric.strip_suffix(end));
            assert!(scrape.has_family(family.unwrap_or(metric)), "{name}: there is no {metric}");
        }
        let groups = text.split("by (").skip(1).filter_map(|rest| rest.split(')').next());
        for label in groups.flat_map(|group| group.split(", ")) {
            let known = ["le", "job", "instance", "alertname", "severity"].contains(&label)
                || labels.iter().any(|row| row.contains(&format!("`{label}`")));
            assert!(known, "{name}: there is no label {label}");
        }
    }
}

#[test]
fn the_files_in_the_pages_are_right() {
    for name in ["README.md", "docs/LIMITS.md", "docs/FLEET.md"] {
        let page = page(name);
        let yaml = page.split("```yaml\n").nth(1).and_then(|rest| rest.split("```").next()).expect("a file");
        let servers = "upstreams: {local: http://127.0.0.1:8080}\n";
        let servers = if yaml.contains("upstreams:") { "" } else { servers };
        let folder = gateway::Folder::new("pages");
        let file = folder.file("gateway.yaml", &(servers.to_owned() + &yaml.replace('…', &"0".repeat(64))));
        let output = run(&["check", file.to_str().expect("UTF-8")]);
        assert_eq!(output.status.code(), Some(0), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    }
}
