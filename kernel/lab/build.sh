#!/bin/sh
# Configure and build a lab kernel out of tree.
#
# usage: build.sh SRC OUT [ARCH] [CONFIG...]
#
# ARCH is x86_64 (default) or arm64.  Further CONFIG fragments, e.g.
# debug.config, are merged on top.  W=1 changes every command line, hence the
# whole kernel is built with it or without it, never in turns.
set -eu
lab=$(dirname "$(readlink -f "$0")")
mkdir -p "$2"
src=$(readlink -f "$1") out=$(readlink -f "$2") arch=${3:-x86_64}
shift 2
[ $# -eq 0 ] || shift

case $arch in
x86_64) image=bzImage; cross= ;;
arm64) image=Image; cross=aarch64-linux-gnu- ;;
*) echo "unknown architecture $arch" >&2; exit 1 ;;
esac
command -v ccache >/dev/null && cc="ccache ${cross}gcc" || cc=${cross}gcc
run() {
	make -s -C "$src" O="$out" ARCH="$arch" CROSS_COMPILE="$cross" CC="$cc" \
		W=1 -j"${JOBS:-2}" "$@"
}

if [ ! -e "$out/.config" ]; then
	run tinyconfig
	(cd "$src" && ./scripts/kconfig/merge_config.sh -m -O "$out" "$out/.config" \
		"$lab/$arch.config" "$@" >/dev/null)
	run olddefconfig
fi
run $image
