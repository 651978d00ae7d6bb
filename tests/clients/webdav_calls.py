"""webdav4: webdav_calls.py URL"""

import io
import sys

from webdav4.client import Client

client = Client(sys.argv[1] + "/dav", auth=("old", "stale"))
client.mkdir("drawings")
client.upload_fileobj(io.BytesIO(b"bolt M4"), "drawings/a b.txt")
client.copy("drawings/a b.txt", "drawings/copy.txt")
client.move("drawings/copy.txt", "moved.txt")
for entry in client.ls("/") + client.ls("drawings"):
    print(entry["name"], entry["type"], entry["href"])
print(client.exists("drawings/copy.txt"), client.isdir("drawings"), client.content_length("moved.txt"))
content = io.BytesIO()
client.download_fileobj("moved.txt", content)
print(content.getvalue().decode())
client.remove("drawings")
