//! Which container, pod or service a cgroup belongs to, by the path that container runtimes and systemd give it.

/// The name of the workload of a cgroup path (`container 3f4e9c8a1b2d`, `pod … container …`, `nginx.service`); `None` when
/// the path is of no known form.
#[must_use]
pub fn name_of(path: &str) -> Option<String> {
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    let container = parts.iter().rev().find_map(|part| container_id(part));
    let pod = parts.iter().rev().find_map(|part| pod_uid(part));
    match (pod, container) {
        (Some(pod), Some(container)) => Some(format!("pod {pod} container {container}")),
        (Some(pod), None) => Some(format!("pod {pod}")),
        (None, Some(container)) => Some(format!("container {container}")),
        (None, None) => {
            let lxc = parts.iter().find_map(|part| part.strip_prefix("lxc.payload."));
            let lxc =
                lxc.or_else(|| parts.iter().position(|part| *part == "lxc").and_then(|at| parts.get(at + 1).copied()));
            let unit = || parts.iter().rev().find(|part| part.ends_with(".service") || part.ends_with(".scope"));
            lxc.map(|name| format!("container {name}")).or_else(|| unit().map(|unit| (*unit).to_owned()))
        }
    }
}

/// `docker-<64 hex>.scope`, `cri-containerd-<64 hex>.scope`, `libpod-<64 hex>.scope`, or the 64 hex digits alone: the
/// first twelve, as the tools print them.
fn container_id(part: &str) -> Option<&str> {
    let name = part.strip_suffix(".scope").unwrap_or(part);
    let id = name.rsplit('-').next().unwrap_or(name);
    (id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit())).then(|| &id[..12])
}

/// `pod<uid>`, or `kubepods-burstable-pod<uid with underscores>.slice`.
fn pod_uid(part: &str) -> Option<String> {
    let name = part.strip_suffix(".slice").unwrap_or(part);
    let uid = name.rsplit_once("pod").filter(|(before, _)| before.is_empty() || before.ends_with('-'))?.1;
    let uid = uid.replace('_', "-");
    let is_uid = uid.len() >= 32 && uid.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
    is_uid.then_some(uid)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "3f4e9c8a1b2d3f4e9c8a1b2d3f4e9c8a1b2d3f4e9c8a1b2d3f4e9c8a1b2d3f4e";

    #[test]
    fn runtimes_are_known_by_their_paths() {
        let cases = [
            (format!("/system.slice/docker-{ID}.scope"), Some("container 3f4e9c8a1b2d")),
            (format!("/docker/{ID}"), Some("container 3f4e9c8a1b2d")),
            (format!("/machine.slice/libpod-{ID}.scope/container"), Some("container 3f4e9c8a1b2d")),
            (
                format!(
                    "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod0a1b2c3d_0a1b_0a1b_0a1b_0a1b2c3d4e5f.slice/cri-containerd-{ID}.scope"
                ),
                Some("pod 0a1b2c3d-0a1b-0a1b-0a1b-0a1b2c3d4e5f container 3f4e9c8a1b2d"),
            ),
            (
                format!("/kubepods/besteffort/pod0a1b2c3d-0a1b-0a1b-0a1b-0a1b2c3d4e5f/{ID}"),
                Some("pod 0a1b2c3d-0a1b-0a1b-0a1b-0a1b2c3d4e5f container 3f4e9c8a1b2d"),
            ),
            ("/lxc.payload.web".to_owned(), Some("container web")),
            ("/lxc/web/init.scope".to_owned(), Some("container web")),
            ("/system.slice/nginx.service".to_owned(), Some("nginx.service")),
            ("/user.slice/user-1000.slice/session-3.scope".to_owned(), Some("session-3.scope")),
            ("/".to_owned(), None),
            ("/tripod/x".to_owned(), None),
            (String::new(), None),
        ];
        for (path, name) in cases {
            assert_eq!(name_of(&path).as_deref(), name, "{path}");
        }
    }
}
