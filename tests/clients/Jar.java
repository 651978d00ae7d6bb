import java.io.InputStream;
import java.net.CookieHandler;
import java.net.CookieManager;
import java.net.CookiePolicy;
import java.net.URL;
import java.nio.charset.StandardCharsets;

/** Java's HttpURLConnection with a CookieManager, which follows no redirect to another scheme: java Jar URL KIND... */
public class Jar {
    public static void main(String[] arguments) throws Exception {
        for (int i = 1; i < arguments.length; i++) {
            CookieHandler.setDefault(new CookieManager(null, CookiePolicy.ACCEPT_ALL));
            String led = get(arguments[0] + "/login/" + arguments[i]);
            System.out.println(arguments[i] + " " + led + " " + get(arguments[0] + "/me"));
        }
    }

    static String get(String url) throws Exception {
        try (InputStream stream = new URL(url).openConnection().getInputStream()) {
            return new String(stream.readAllBytes(), StandardCharsets.UTF_8);
        }
    }
}
