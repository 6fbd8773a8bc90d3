"""signed.py FILE KEY SECRET: whether botocore signs each request of the file (METHOD URL, one a line) as it was signed."""
import datetime
import sys
from urllib.parse import parse_qsl, quote, urlsplit

import botocore.auth
from botocore.auth import S3SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

path, key, secret = sys.argv[1:]
checked = 0
for line in open(path):
    method, url = line.split()
    parts = urlsplit(url)
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    own = {name: value for name, value in query.items() if not name.startswith("X-Amz-")}
    region = query["X-Amz-Credential"].split("/")[2]
    when = datetime.datetime.strptime(query["X-Amz-Date"], "%Y%m%dT%H%M%SZ")
    botocore.auth.get_current_datetime = lambda remove_tzinfo=True: when
    plain = "&".join(f"{quote(n, safe='-_.~')}={quote(v, safe='-_.~')}" for n, v in sorted(own.items()))
    request = AWSRequest(method=method, url=f"{parts.scheme}://{parts.netloc}{parts.path}" + (f"?{plain}" if plain else ""))
    S3SigV4QueryAuth(Credentials(key, secret), "s3", region, expires=int(query["X-Amz-Expires"])).add_auth(request)
    theirs = dict(parse_qsl(urlsplit(request.url).query))["X-Amz-Signature"]
    if theirs != query["X-Amz-Signature"]:
        sys.exit(f"another signature: {method} {parts.path}?{plain}")
    checked += 1
print(f"{checked} signatures are botocore's")
