#!/bin/sh
# Makes an authority and a certificate for Redis: make-certificates.sh DIRECTORY HOST [HOST…]   (names or addresses)
# Give clients ca.crt; keep ca.key away from every server. The certificate is good for 825 days.
set -eu
if [ $# -lt 2 ]; then
  echo "usage: $0 DIRECTORY HOST [HOST…]" >&2
  exit 2
fi
directory=$1
shift
names=
for host in "$@"; do
  case $host in
    *[!0-9.:a-fA-F]* | *[!0-9.:]*[!0-9.:a-fA-F]*) kind=DNS ;;
    *[.:]*) kind=IP ;;
    *) kind=DNS ;;
  esac
  names="$names${names:+,}$kind:$host"
done
umask 077
mkdir -p "$directory"
cd "$directory"
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 -subj "/CN=Errand Redis authority" \
  -addext "basicConstraints=critical,CA:TRUE" -addext "keyUsage=critical,keyCertSign,cRLSign" \
  -keyout ca.key -out ca.crt 2>/dev/null
openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=$1" -keyout redis.key -out redis.csr 2>/dev/null
printf 'subjectAltName=%s\nextendedKeyUsage=serverAuth,clientAuth\nbasicConstraints=CA:FALSE\n' "$names" >redis.ext
openssl x509 -req -in redis.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 825 -extfile redis.ext -out redis.crt \
  2>/dev/null
rm -f redis.csr redis.ext ca.srl
echo "made ca.crt, redis.crt and redis.key in $directory for $names"
