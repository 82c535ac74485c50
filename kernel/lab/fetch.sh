#!/bin/sh
# Fetch a kernel source from Debian's pool and make it a git tree with a
# baseline commit, so that the series can be applied and made with git.
#
# usage: fetch.sh DIR [PACKAGE]     (default package linux-source-6.12)
#
# The pool keeps only current revisions, so none is pinned.  Needs no root.
set -eu
dir=$1 pkg=${2:-linux-source-6.12}

mkdir -p "$dir"
cd "$dir"
rm -f "$pkg"_*.deb
apt-get download "$pkg"
dpkg -x "$pkg"_*.deb deb
tar xf deb/usr/src/"$pkg".tar.xz
rm -rf deb
cd "$pkg"
git init -q
git add -A -f .
git -c user.name=lab -c user.email=lab@localhost commit -q \
	-m "$(dpkg-deb -f ../"$pkg"_*.deb Package Version | tr '\n' ' ')"
git tag lab-base
