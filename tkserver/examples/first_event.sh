URL=${1:-http://127.0.0.1:3000}
ORG=550e8400-e29b-41d4-a716-446655440000
APP=7c9e6679-7425-40de-944b-e07fc1f90ae7
TOKEN=tk_550e8400e29b41d4a716446655440000_a1b2c3d4e5f6g7h8i9j0k1l2m3n4o5p6
SECRET=9f4b3c2a1e8d7f6a5b4c3d2e1f0a9b8c7d6e5f4a3b2c1d0e9f8a7b6c5d4e3f2a1b0

ID=$(openssl rand -hex 16)
NOW=$(date -u +%Y-%m-%dT%H:%M:%SZ)
TIMESTAMP=$(date +%s)
BODY='{"events":[{
  "schema_version": "1.0.0", "event_id": "'$ID'", "timestamp": "'$NOW'",
  "service": {"name": "my-cli", "version": "1.0.0", "language": "sh"},
  "user_id": "client_demo", "environment": {"os": "linux"},
  "event": {"type": "command_executed", "data": {"command": "build", "ok": true}},
  "metadata": {"sdk_version": "0.3.0", "transmission_timestamp": "'$NOW'", "batch_size": 1, "retry_count": 0}
}]}'
SIGNATURE=$(printf '%s' "$TIMESTAMP:$BODY" | openssl dgst -sha256 -hmac "$SECRET" -r | cut -d ' ' -f 1)

curl -sS "$URL/v1/ingest/$ORG/$APP" -H "Authorization: Bearer $TOKEN" -H "X-Timestamp: $TIMESTAMP" \
  -H "X-Signature: $SIGNATURE" -H 'Content-Type: application/json' --data-binary "$BODY"
