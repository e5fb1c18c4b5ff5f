#!/bin/bash
# Installs Kai on this host, or lets you try it first. Reads from top to bottom; `main` is at the end.
#
#   ./install.sh --demo        try it: no root, no systemd, no Telegram account
#   sudo ./install.sh          install or upgrade; asks for what it needs
#   ./install.sh --help        all options
#
# Everything new is built beside what is there. Only then are the units and one symbolic link switched, and switched
# back if the bot doesn't come up. Configuration, secrets and data are kept. Secrets are never printed, and never
# given to another program as an argument or in its environment.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
opt=/opt/kai etc=/etc/kai credstore=/etc/credstore
unit_dir=/usr/local/lib/systemd/system
sysusers_dir=/usr/local/lib/sysusers.d tmpfiles_dir=/usr/local/lib/tmpfiles.d
man_dir=/usr/local/share/man doc_dir=/usr/local/share/doc/kai command=/usr/local/bin/kai
python=/usr/bin/python3
enabled_units=(kai.target kai-bot.socket kai-bot.service kai-scheduler.socket kai-scheduler.service kai-timers.socket
    kai-totp.socket kai-proxy.socket kai-proxy-model.socket kai-webhook.socket kai-webhook-http.socket
    kai-webhook-local.socket kai-webhook.service kai-github.socket kai-github.timer)

token_file="" model_key_file="" api_base="" agent_command=""
users=()
mode=install dry_run="" purge="" assume_yes=""
step="reading the options" switched="" finished=""

usage() {
    cat <<'END'
sudo ./install.sh [OPTION…]     install or upgrade Kai
  --token-file FILE             the bot's token, from @BotFather (- is standard input)
  --user ID:NAME[:OS_USER]      admit a user: Telegram id, short name, existing account that the agent works as
                                (default: a new account); can be repeated, the first user is an admin
  --agent-command COMMAND       the agent program (default: claude)
  --model-key-file FILE         the key of the model's service, kept by kai-proxy for all users
                                (without it, each user's agent logs in by itself: kai login USER)
  --api-base URL                another Bot API server than api.telegram.org
  --yes                         ask nothing
  --dry-run                     say what would be done
sudo ./install.sh --uninstall   remove the programs; configuration, secrets, data and accounts stay
  --purge                       remove those too
./install.sh --demo [OPTION…]   a chat in the terminal, nothing is installed; --say TEXT prints one answer
END
}

say() { printf '%s\n' "$*"; }
warn() { printf 'install.sh: %s\n' "$*" >&2; }
die() {
    warn "$*"
    exit 1
}

# Do it, or say it.
run() {
    if [ -n "$dry_run" ]; then say "would run: $*"; else "$@"; fi
}

parse() {
    [ "${1-}" != --demo ] || {
        mode=demo
        return
    }
    while [ $# -gt 0 ]; do
        case $1 in
        --token-file | --user | --agent-command | --model-key-file | --api-base)
            [ $# -ge 2 ] || die "$1 needs a value (./install.sh --help)"
            option "$1" "$2"
            shift
            ;;
        --*=*) option "${1%%=*}" "${1#*=}" ;;
        --yes) assume_yes=1 ;;
        --dry-run) dry_run=1 ;;
        --uninstall) mode=uninstall ;;
        --purge) purge=1 ;;
        -h | --help)
            usage
            exit 0
            ;;
        --demo) die "--demo comes first and takes none of the other options" ;;
        *) die "unknown option $1 (./install.sh --help)" ;;
        esac
        shift
    done
    [ -z "$purge" ] || [ "$mode" = uninstall ] || die "--purge goes with --uninstall"
}

option() {
    case $1 in
    --token-file) token_file=$2 ;;
    --user)
        [[ $2 =~ ^[1-9][0-9]*:[a-z][a-z0-9-]*(:[^:]+)?$ ]] || die "--user $2: expected ID:NAME or ID:NAME:OS_USER"
        users+=("$2")
        ;;
    --agent-command) agent_command=$2 ;;
    --model-key-file) model_key_file=$2 ;;
    --api-base) api_base=$2 ;;
    *) die "unknown option $1 (./install.sh --help)" ;;
    esac
}

# ---- The demo -------------------------------------------------------------------------------------------------

demo() {
    cd "$here"
    local found=""
    for found in python3 python3.14 python3.13 python3.12 python3.11 ""; do
        [ -z "$found" ] || ! "$found" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || break
    done
    [ -n "$found" ] || die "Python 3.11 or later is needed (on Debian: sudo apt-get install python3 python3-venv)"
    if ! cmp -s pyproject.toml .venv/demo-installed; then
        say "Once only: making a virtual environment in $here/.venv" >&2
        if ! [ -x .venv/bin/pip ]; then
            "$found" -m venv .venv >/dev/null ||
                die "no virtual environment could be made (on Debian: sudo apt-get install python3-venv; then try again)"
        fi
        .venv/bin/python -m pip install --quiet --disable-pip-version-check --use-pep517 --editable . ||
            die "the libraries could not be installed into .venv: see above"
        cp pyproject.toml .venv/demo-installed
    fi
    exec .venv/bin/kai demo "$@"
}

# ---- What the host must have ----------------------------------------------------------------------------------

check_host() {
    step="looking at the host"
    [ "$(id -u)" = 0 ] || [ -n "$dry_run" ] || die "this needs root: sudo ./install.sh (to try Kai first: ./install.sh --demo)"
    [ -d /run/systemd/system ] || die "systemd doesn't run this host: ./install.sh --demo works without it"
    local version
    version=$(systemctl --version | sed -n '1s/^systemd \([0-9]*\).*/\1/p')
    [ "${version:-0}" -ge 252 ] || die "systemd $version is too old: 252 or later is needed (Debian 12 has it)"
    [ ! -e "$command" ] || [ "$(readlink "$command")" = "$opt/current/bin/kai" ] ||
        die "$command is there and isn't Kai's: move it away first"
}

missing_packages() {
    "$python" -c 'import ensurepip, venv' 2>/dev/null || printf 'python3-venv '
    "$python" -c 'import systemd.journal' 2>/dev/null || printf 'python3-systemd '
    { command -v sudo && command -v visudo; } >/dev/null || printf 'sudo '
    command -v setpriv >/dev/null || printf 'util-linux '
    command -v gpasswd >/dev/null || printf 'passwd '
    command -v git >/dev/null || printf 'git '
}

bring_packages() {
    step="installing Debian packages"
    local -a missing
    read -ra missing <<<"$(missing_packages)"
    if [ ${#missing[@]} -gt 0 ]; then
        command -v apt-get >/dev/null ||
            die "missing on this host, by their names in Debian: ${missing[*]}. Install them and run this again"
        say "Installing ${missing[*]}"
        run apt_get update
        run apt_get install --yes --no-install-recommends "${missing[@]}"
    fi
    [ -n "$dry_run" ] || "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        die "$python is $("$python" --version): 3.11 or later is needed"
}

apt_get() { quietly env DEBIAN_FRONTEND=noninteractive apt-get -q "$@"; }

# What a program says is shown only when it fails.
quietly() {
    local said
    said=$("$@" 2>&1 </dev/null) || die "\`$*\` failed:
$(tail -n 20 <<<"$said")"
}

# ---- What the operator has to say -----------------------------------------------------------------------------

token="" model_key=""

gather() {
    step="gathering what is needed"
    local asks=""
    [ ! -t 0 ] || [ -n "$assume_yes$dry_run" ] || asks=1
    [ -z "$token_file" ] || token=$(secret_from "$token_file" "--token-file")
    [ -z "$model_key_file" ] || model_key=$(secret_from "$model_key_file" "--model-key-file")
    if [ -z "$token" ] && ! has_secret kai-telegram-token; then
        [ -n "$asks" ] || [ -n "$dry_run" ] || die "no bot token: make a bot with @BotFather and give --token-file FILE"
        [ -z "$asks" ] || ask_secret token "Token of the bot (from @BotFather; not shown): "
    fi
    if [ ${#users[@]} = 0 ] && ! has_users; then
        [ -n "$asks" ] || [ -n "$dry_run" ] || die "nobody would be admitted: give --user ID:NAME (@userinfobot tells the id)"
        [ -z "$asks" ] || ask_user
    fi
    if [ -n "$asks" ] && [ ! -e "$etc/kai.yaml" ]; then
        [ -n "$agent_command" ] || read -rp "Command of the agent [claude]: " agent_command
        [ -n "$model_key" ] || has_secret kai-model-key ||
            ask_secret model_key "Key of the model's service (not shown; empty: each agent logs in by itself): " optional
    fi
    [ -z "$token" ] || [[ $token =~ ^[0-9]+:[A-Za-z0-9_-]+$ ]] || die "that is no bot token: expected 123456:ABC-DEF…"
}

has_secret() { [ -e "$credstore/$1" ] || [ -e "$credstore.encrypted/$1" ]; }

has_users() {
    grep -qE '^[^#]*telegram_id:' "$etc/users.yaml" 2>/dev/null ||
        grep -qE '^allowed_user_ids:' "$etc/kai.yaml" 2>/dev/null
}

# One line without white space, from a file or standard input.
secret_from() {
    local value=""
    if [ "$1" = - ]; then
        IFS= read -r value || true
    else
        [ -r "$1" ] || die "$2 $1: can't be read"
        IFS= read -r value <"$1" || true
    fi
    value=${value%$'\r'}
    [[ $value =~ ^[!-~]+$ ]] || die "$2 $1: expected one line with the secret and nothing else"
    printf '%s' "$value"
}

ask_secret() {
    local -n into=$1
    local optional=${3-}
    while :; do
        IFS= read -rsp "$2" into || die "no answer"
        printf '\n'
        [[ $into =~ ^[!-~]+$ ]] && return
        [ -z "$optional" ] || [ -n "$into" ] || return 0
    done
}

ask_user() {
    local id="" name="" account=""
    until [[ $id =~ ^[1-9][0-9]*$ ]]; do read -rp "Your Telegram id (a number; @userinfobot tells it): " id; done
    until [[ $name =~ ^[a-z][a-z0-9-]{0,23}$ ]]; do read -rp "A short name for you (a-z, 0-9, -): " name; done
    read -rp "Existing account that your agent works as [a new one of its own]: " account
    users+=("$id:$name${account:+:$account}")
}

# ---- Building, beside what is there ---------------------------------------------------------------------------

release=""

# The same content gets the same name: nothing is built twice, and nothing is built over what runs.
name_release() {
    local version sum
    version=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' "$here/kai/__init__.py")
    sum=$(
        cd "$here"
        {
            find kai units sudoers.d man etc pyproject.toml -type f ! -name '*.pyc' -print0 | LC_ALL=C sort -z | xargs -0 sha256sum
            "$python" --version 2>&1 || true
        } | sha256sum
    )
    release=$opt/$version-${sum:0:10}
}

build() {
    step="building $release"
    if [ -e "$release/complete" ]; then
        say "$release is built already"
        return
    fi
    if [ -n "$dry_run" ]; then
        say "would build Kai and its libraries in $release"
        return
    fi
    say "Building $release"
    rm -rf "$release"
    mkdir -p "$opt"
    "$python" -m venv "$release"
    local source
    source=$(mktemp -d)
    cp -r "$here/kai" "$here/pyproject.toml" "$here/LICENSE" "$here/README.md" "$source/" # a build writes into its source
    quietly "$release/bin/python" -m pip install --disable-pip-version-check --use-pep517 "${source}[totp]"
    rm -rf "$source"
    link_journal
    local program
    for program in "$release"/bin/kai*; do
        sed -i "1s|.*|#!$release/bin/python -I|" "$program" # -I: nothing of the caller's environment or directory
    done
    mkdir -p "$release/share/kai"
    cp -r "$here/units" "$here/sudoers.d" "$here/man" "$here/etc" "$release/share/kai/"
    chown -R root:root "$release"
    chmod -R u=rwX,go=rX "$release"
    "$release/bin/kai" --version >/dev/null || die "what was built doesn't start"
    touch "$release/complete"
}

# The distribution's python3-systemd: a virtual environment doesn't see it, and building it needs a compiler.
link_journal() {
    local package site
    package=$("$python" -c 'import os, systemd; print(os.path.dirname(systemd.__file__))')
    site=$("$release/bin/python" -c 'import sysconfig; print(sysconfig.get_path("platlib"))')
    ln -s "$package" "$site/systemd"
}

check_configuration() {
    step="checking the configuration with the new version"
    [ -z "$dry_run" ] && has_users || return 0
    "$release/bin/kai" check "$etc" >/dev/null || {
        "$release/bin/kai" check "$etc" >&2 || true
        die "the configuration has faults: repair it and run this again"
    }
}

# ---- Putting it in place --------------------------------------------------------------------------------------

# Units, manual pages and the link, all from one release: this is also the way back.
place() {
    local from=$1/share/kai file
    install -d "$unit_dir" "$sysusers_dir" "$tmpfiles_dir" "$doc_dir"
    install -m 0644 "$from"/units/kai* "$unit_dir/"
    for file in "$unit_dir"/kai*; do
        [ ! -f "$file" ] || [ -e "$from/units/${file##*/}" ] || rm "$file" # a unit that this release doesn't have
    done
    install -m 0644 "$from/units/sysusers.d/kai.conf" "$sysusers_dir/"
    install -m 0644 "$from/units/tmpfiles.d/kai.conf" "$tmpfiles_dir/"
    for file in "$from"/man/*; do
        install -D -m 0644 "$file" "$man_dir/man${file##*.}/${file##*/}"
    done
    install -m 0644 "$from"/etc/*.* "$doc_dir/"
    ln -sfn "${1##*/}" "$opt/.current"
    mv -T "$opt/.current" "$opt/current"
    ln -sfn "$opt/current/bin/kai" "$command"
}

install_files() {
    step="putting the files in place"
    if [ -n "$dry_run" ]; then
        say "would install units, manual pages and examples below /usr/local, and point $opt/current to $release"
    else
        switched=1
        place "$release"
    fi
    run quietly systemd-sysusers kai.conf
    run systemd-tmpfiles --create kai.conf
    run systemctl daemon-reload
}

configure() {
    step="writing the configuration"
    local file
    for file in kai.yaml workspaces.yaml services.yaml identity.md; do
        [ -e "$etc/$file" ] || run install -m 0640 -o root -g kai-config "$here/etc/$file" "$etc/$file"
    done
    [ -z "$api_base" ] || setting telegram.api_base "$api_base"
    if [ -n "$agent_command" ]; then
        local -a words
        read -ra words <<<"$agent_command"
        setting agent.command "${words[@]}"
    fi
    [ -z "$token" ] || keep_secret kai-telegram-token "$token"
    [ -z "$model_key" ] || keep_secret kai-model-key "$model_key"
    token="" model_key=""
}

setting() {
    run "$release/bin/python" -I -m kai.cli.setting "$etc/kai.yaml" "$@"
}

changed_secrets=""

keep_secret() {
    if [ -n "$dry_run" ]; then
        say "would write $credstore/$1 (root, 0600)"
        return
    fi
    install -d -m 0700 "$credstore"
    local new=$credstore/.$1.new
    (umask 077 && printf '%s\n' "$2" >"$new") # printf is the shell's own: no other program sees the secret
    if cmp -s "$new" "$credstore/$1"; then
        rm -f "$new"
    else
        mv "$new" "$credstore/$1"
        changed_secrets+=" $1"
    fi
}

admit() {
    step="admitting users"
    local entry id name account first=""
    has_users || first=1
    for entry in ${users[@]+"${users[@]}"}; do
        IFS=: read -r id name account <<<"$entry"
        is_user "$name" "$id" || run "$command" users add "$id" "$name" ${account:+--os-user "$account"} ${first:+--admin}
        first=""
    done
    run "$command" users apply
}

is_user() {
    [ -z "$dry_run" ] && has_users && "$command" users list | grep -qE "^$1 +$2 "
}

# ---- Starting, and the way back -------------------------------------------------------------------------------

# What runs changes over without losing anything: the bot restarts in mid-answer, agents leave after their turn, and
# the proxy when it is idle.
start() {
    step="starting"
    run systemctl enable --quiet "${enabled_units[@]}"
    if [ -z "$dry_run" ] && [ -n "$was_running" ]; then
        [ "$previous" = "${release##*/}" ] && [ -z "$changed_secrets" ] || systemctl restart kai-bot.service || true
        # systemd opens no socket of a service that runs: with a first key, or from a Kai without services, one is new
        if [[ $changed_secrets == *kai-model-key* ]] || ! systemctl is-active --quiet kai-proxy.socket; then
            systemctl stop kai-proxy.service || true
        fi
        [ "$previous" = "${release##*/}" ] || change_over
    fi
    run systemctl start kai.target || true # what didn't come up is said below
}

# A job's run goes on with the new scheduler; agents leave after their turn.
change_over() {
    systemctl restart kai-scheduler.service || true
    systemctl try-restart kai-timers.service || true
    systemctl try-restart kai-totp.service || true
    systemctl try-restart kai-webhook.service kai-github.service || true
    "$command" retire || true
}

# The bot's own words, once it has started or given up.
bot_state=""
bot_is_up() {
    local tries
    for ((tries = 0; tries < 60; tries++)); do
        [ "$(systemctl show -P NRestarts kai-bot.service)" -lt 3 ] || return 1
        bot_state=$(systemctl show -P StatusText kai-bot.service)
        case $(systemctl is-active kai-bot.service || true) in
        active) [[ $bot_state != polling* ]] || return 0 ;;
        failed | inactive) return 1 ;;
        esac
        sleep 0.5
    done
    [ "$(systemctl is-active kai-bot.service || true)" = active ]
}

verify() {
    step="looking whether it works"
    [ -z "$dry_run" ] || return 0
    if bot_is_up; then
        say "kai-bot: $bot_state"
        return
    fi
    warn "kai-bot didn't come up: ${bot_state:-see journalctl -u kai-bot}"
    if [ -n "$was_running" ] && [ "$previous" != "${release##*/}" ]; then
        go_back
        finished=1
        die "the version before, $previous, runs again"
    fi
    die "Kai is installed. Repair what kai-bot says, then: systemctl start kai.target"
}

go_back() {
    warn "going back to $previous"
    place "$opt/$previous"
    systemctl daemon-reload
    systemctl restart kai-bot.service || true
    change_over
    switched=""
}

# The release before stays, and any that a process still runs from.
clean_up() {
    step="removing old versions"
    [ -z "$dry_run" ] || return 0
    local old
    for old in "$opt"/*-*; do
        case ${old##*/} in
        "${release##*/}" | "$previous") continue ;;
        esac
        grep -qsaF "$old/" /proc/[0-9]*/cmdline || rm -rf "$old"
    done
}

# ---- What is left to do ---------------------------------------------------------------------------------------

next_steps() {
    step="saying what is next"
    [ -z "$dry_run" ] || return 0
    local name answer
    while read -r -u 3 name _; do
        "$command" login --check "$name" || {
            answer=""
            [ ! -t 0 ] || [ -n "$assume_yes" ] || read -rp "Log the agent of $name in now? [y/N] " answer
            [[ $answer != [yY]* ]] || "$command" login "$name" || true
        }
    done 3< <("$command" users list | tail -n +2)
    say "Kai runs. Write to the bot in Telegram."
    say "  systemctl status kai-bot · sudo kai status · journalctl -u 'kai-*' · man 7 kai"
}

# ---- Removing -------------------------------------------------------------------------------------------------

stays=""

uninstall() {
    step="removing Kai"
    [ "$(id -u)" = 0 ] || [ -n "$dry_run" ] || die "this needs root: sudo ./install.sh --uninstall"
    local file
    say "Stopping Kai: a running turn may finish"
    if [ -e "$unit_dir/kai.target" ]; then
        run systemctl stop kai.target 'kai-*.timer' 'kai-*.socket' 'kai-*.service' kai.slice
        for file in /etc/systemd/system/kai.target.wants/*; do
            [ ! -L "$file" ] || run systemctl disable --quiet "${file##*/}"
        done
        run systemctl disable --quiet "${enabled_units[@]}"
    fi
    run rm -f "$unit_dir"/kai*.* "$sysusers_dir/kai.conf" "$tmpfiles_dir/kai.conf" "$command" /etc/sudoers.d/kai
    run rm -f /etc/sysusers.d/kai-users.conf /etc/tmpfiles.d/kai-users.conf
    run rm -rf /etc/systemd/system/kai-agent@*.service.d "$opt" "$doc_dir" /run/kai
    run rm -f /var/lib/systemd/timers/stamp-kai-job@*.timer
    for file in "$here"/man/*; do
        run rm -f "$man_dir/man${file##*.}/${file##*/}"
    done
    # Directories that may have been made for Kai, where they are empty.
    run rmdir --ignore-fail-on-non-empty "$unit_dir" "${unit_dir%/*}" "$sysusers_dir" "$tmpfiles_dir" 2>/dev/null || true
    run systemctl daemon-reload
    run systemctl reset-failed 'kai-*' 2>/dev/null || true
    [ -z "$purge" ] || purge
    if [ -n "$stays" ]; then
        say "Kai and everything it kept is removed, but for these accounts:$stays"
    elif [ -n "$purge" ]; then
        say "Kai and everything it kept is removed."
    else
        say "Kai is removed. What stays: $etc, $credstore/kai-*, /var/lib/kai, and the accounts and groups kai-*,"
        say "because an account that got one of their numbers would own what they left. ./install.sh --uninstall --purge"
        say "removes all of it."
    fi
}

purge() {
    step="removing configuration, data and accounts"
    # rm doesn't follow links, so what agents left in their directories leads nowhere else.
    run rm -rf --one-file-system /var/lib/kai "$etc"
    run rm -rf "$credstore"/kai-* "$credstore".encrypted/kai-*
    local name uid mark
    while IFS=: read -r name _ uid _ mark _; do
        case $name:$mark in
        "kai-u-"*":Kai supervisor of ${name#kai-u-}"* | "kai-w-"*":Kai work account of ${name#kai-w-}"*) ;;
        "kai-bot:Kai bot"* | "kai-proxy:Kai proxy"* | "kai-scheduler:Kai scheduler"*) ;;
        "kai-totp:Kai TOTP verifier"* | "kai-webhook:Kai webhooks"* | "kai-github:Kai GitHub"*) ;;
        *) continue ;;
        esac
        remove_account "$name" "$uid"
    done < <(getent passwd)
    for name in kai-config kai-bot-clients kai-agent-clients kai-scheduler-clients kai-proxy-clients \
        kai-webhook-clients kai-webhook-http kai-github-clients kai-model; do
        ! getent group "$name" >/dev/null || run groupdel "$name"
    done
}

# An account whose processes or files are left elsewhere stays: the next one with its number would own them.
remove_account() {
    local left
    run rm -f "/var/spool/cron/crontabs/$1"
    left=$(find /proc -maxdepth 1 -uid "$2" -print -quit 2>/dev/null || true)
    [ -n "$left" ] || left=$(find / /home /srv /opt /var /tmp -xdev -uid "$2" -print -quit 2>/dev/null || true)
    if [ -n "$left" ]; then
        stays+=" $1"
        warn "the account $1 stays: it still has a process or file (${left@Q}). Remove that, then: userdel $1"
        return
    fi
    run quietly userdel "$1"
    ! getent group "$1" >/dev/null || run groupdel "$1"
}

# ---- The whole ------------------------------------------------------------------------------------------------

leave() {
    local code=$?
    [ "$code" = 0 ] || [ -n "$finished" ] || {
        warn "stopped while $step"
        if [ -n "$switched" ] && [ -n "$was_running" ] && [ -n "$previous" ] && [ "$previous" != "${release##*/}" ]; then
            go_back
        elif [ -z "$switched" ] && [ -n "$previous" ]; then
            warn "what was installed before is untouched"
        fi
    }
    exit "$code"
}

previous="" was_running=""

install_kai() {
    PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
    umask 022
    trap leave EXIT
    check_host
    previous=$(readlink "$opt/current" || true)
    ! systemctl is-active --quiet kai-bot.service || was_running=1
    gather
    bring_packages
    name_release
    build
    check_configuration
    install_files
    configure
    admit
    start
    verify
    switched=""
    clean_up
    next_steps
    finished=1
}

main() {
    parse "$@"
    case $mode in
    demo)
        shift
        demo "$@"
        ;;
    uninstall) uninstall ;;
    install) install_kai ;;
    esac
}

main "$@"
