#!/bin/bash
# run.sh BIN_DIR [OPTION]... - the long form of the cluster tests: every scenario of
# `polymath chaos` with each process on a host of its own (network namespaces behind a switch
# in user space, 0.2 ms round trips over tcp), and again on this host over ipc sockets.
#
# OPTIONs go to `polymath chaos`, such as --seconds 120.  Without root or /dev/net/tun the first
# half is skipped, and says so.  Exit code 1 if a promise was not kept.
set -u
bin=$1
shift
bad=0
why=''
[ "$(id -u)" -eq 0 ] || why='not root'
[ -n "$why" ] || [ -w /dev/net/tun ] || why='no /dev/net/tun'
[ -n "$why" ] || unshare --net true 2>/dev/null || why='network namespaces are not permitted'
echo '== each process on a host of its own'
if [ -n "$why" ]; then
    echo "skipped: $why"
else
    "$bin/polymath" chaos --hosts "$@" || bad=1
fi
echo '== all on this host'
"$bin/polymath" chaos "$@" || bad=1
exit $bad
