import java.io.InputStream;
import java.net.HttpURLConnection;
import java.net.URL;
import java.nio.charset.StandardCharsets;
import java.security.MessageDigest;
import java.util.HexFormat;

/** Java's old HttpURLConnection: java UrlConnection URL. */
public class UrlConnection {
    public static void main(String[] arguments) throws Exception {
        String[] paths = {"/json?x=1&y=%2F", "/gzip", "/missing", "/moved", "/chunked", "/large"};
        for (String path : paths) {
            call("GET", arguments[0], path, null);
        }
        call("HEAD", arguments[0], "/json", null);
        call("POST", arguments[0], "/items", "{\"name\": \"bolt\"}");
    }

    static void call(String method, String base, String path, String body) throws Exception {
        HttpURLConnection connection = (HttpURLConnection) new URL(base + path).openConnection();
        connection.setRequestMethod(method);
        if (System.getenv("AUTH") != null) {
            connection.setRequestProperty("Authorization", System.getenv("AUTH"));
        }
        if (body != null) {
            connection.setRequestProperty("Content-Type", "application/json");
            connection.setDoOutput(true);
            connection.getOutputStream().write(body.getBytes(StandardCharsets.UTF_8));
        }
        int status = connection.getResponseCode();
        System.out.println("> " + method + " " + path);
        System.out.println(status + " " + connection.getResponseMessage());
        for (int i = 1; connection.getHeaderField(i) != null; i++) {
            System.out.println(connection.getHeaderFieldKey(i) + ": " + connection.getHeaderField(i));
        }
        MessageDigest digest = MessageDigest.getInstance("SHA-256");
        try (InputStream stream = status < 400 ? connection.getInputStream() : connection.getErrorStream()) {
            digest.update(stream.readAllBytes());
        }
        System.out.println(HexFormat.of().formatHex(digest.digest()));
    }
}
